"""The thread that reads the GPUs whose ranks are measured: energy counter at its refreshes, clock, temperature.

It runs only while a sweep does. One thread for all GPUs of the node: it sleeps until the next read that one of them
needs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.measuring.counter import RefreshFinder

if TYPE_CHECKING:
    from perseus_daemonset.lease import Lease

IDLE_SECONDS = 0.1
LONGEST_SLEEP_SECONDS = 0.005
LOOK_NANOSECONDS = 40_000_000
CONFIRM_NANOSECONDS = 3_000_000  # until a change of the clock is seen
PAUSE_AFTER_ERROR_NANOSECONDS = 1_000_000_000
# While one of these is active the device does less than its clock says.
_DISTURBANCES = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})
_NANOSECONDS = 1_000_000_000
logger = logging.getLogger("perseus.agent")


class Sampler:
    """Reads GPUs for the measurers of the open leases."""

    def __init__(self, leases: Callable[[], Iterable[Lease]]) -> None:
        """Read for whatever leases a function returns."""
        self._leases = leases
        self._finders: dict[str, RefreshFinder] = {}
        self._next_look: dict[str, int] = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to read in the background."""
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def stop(self) -> None:
        """Stop after the current read."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            measured = [lease for lease in self._leases() if lease.measured]
            gpus = {lease.key.gpu for lease in measured}
            for gone in [gpu for gpu in self._finders if gpu not in gpus]:
                del self._finders[gone], self._next_look[gone]
            if not measured:
                self._stopped.wait(IDLE_SECONDS)
                continue
            due = min(self._read(lease) for lease in measured)
            # A lease's thread may ask for a clock at any moment, and a change is to be seen soon.
            time.sleep(max(0.0, min((due - time.monotonic_ns()) / _NANOSECONDS, LONGEST_SLEEP_SECONDS)))

    def _read(self, lease: Lease) -> int:
        """Read what is due of one GPU; return when the next read is."""
        controller, measurer = lease.controller, lease.measurer
        gpu = controller.gpu
        finder = self._finders.setdefault(gpu.uuid, RefreshFinder())
        next_look = self._next_look.setdefault(gpu.uuid, 0)
        if measurer is None:
            return time.monotonic_ns() + CONFIRM_NANOSECONDS
        try:
            now = time.monotonic_ns()
            if now >= finder.next_read_nanoseconds:
                joules = gpu.energy_joules()
                found = finder.read(now, time.monotonic_ns(), joules)
                if found is not None:
                    measurer.refresh(found)
            if now >= next_look:
                # While a call is under way the device may be at the new clock though only the old one is told of.
                request = controller.settled_request
                begin = time.monotonic_ns()
                reading = gpu.read()
                end = time.monotonic_ns()
                if request is not None and controller.settled_request == request:
                    reasons = reading.event_reasons
                    measurer.look(
                        begin, end, reading.clock_megahertz, reading.temperature_celsius,
                        undisturbed=not _DISTURBANCES.intersection(reasons), idle="gpu_idle" in reasons,
                    )  # fmt: skip
                    next_look = begin + LOOK_NANOSECONDS
                else:
                    next_look = begin + CONFIRM_NANOSECONDS
        except HardwareError as error:
            logger.warning("%s; it is not measured for a second", error)
            finder.next_read_nanoseconds = next_look = time.monotonic_ns() + PAUSE_AFTER_ERROR_NANOSECONDS
        else:
            if measurer.unconfirmed:
                next_look = min(next_look, now + CONFIRM_NANOSECONDS)
        self._next_look[gpu.uuid] = next_look
        return min(finder.next_read_nanoseconds, next_look)
