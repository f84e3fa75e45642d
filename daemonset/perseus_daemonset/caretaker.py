"""The thread of one GPU's own: it makes the calls that nobody must wait for, and looks whether the clock is held.

A device that answers slowly, or not at all, thereby costs its own rank's readings and nothing else: no other GPU's
clock, no watch of the API, no page of metrics. What the pages show is the last reading, a second old at most while the
device answers.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from perseus_daemonset.controller import ClockController
from perseus_daemonset.hardware import HardwareError, Reading
from perseus_daemonset.held import SETTLE_SECONDS, HeldClock, Verdict

TICK_SECONDS = 0.05
READ_SECONDS = 0.5
DOUBT_SECONDS = 0.1
THROTTLE_SECONDS = 5.0
RETRY_UNLOCK_SECONDS = 1.0
STALE_SECONDS = 15.0


class Tenant(Protocol):
    """Who has the GPU's clock set now."""

    def running(self) -> object | None:
        """Return the work that runs on the GPU, if it has a clock."""

    def upkeep(self) -> None:
        """Do what is due now and then and need not hurry."""


class Caretaker:
    """Looks after one GPU.

    Attributes:
        controller: its clock.
        held: whether its clock is held.
        throttled: seconds below its clocks by cause, as the device counts them.
        failure: code of the error that the last reading met, empty if it met none.
        tenant: who has the clock set now, None if nobody.
    """

    def __init__(self, controller: ClockController) -> None:
        """Take a GPU over; see `start`."""
        self.controller = controller
        self.held = HeldClock()
        self.throttled: dict[str, float] = {}
        self.failure = ""
        self.tenant: Tenant | None = None
        self._reading: Reading | None = None
        self._read_seconds = 0.0
        self._judged_seconds = 0.0
        self._throttle_seconds = 0.0
        self._tried_seconds = 0.0
        self._nudged = threading.Event()
        self._stopped = False

    @property
    def reading(self) -> Reading | None:
        """The last reading, None if the device has not answered for a while."""
        return self._reading if time.monotonic() - self._read_seconds < STALE_SECONDS else None

    def start(self) -> None:
        """Begin; the thread lives as long as the agent."""
        threading.Thread(target=self._run, name="caretaker", daemon=True).start()

    def nudge(self) -> None:
        """There is a wish in the controller's slot."""
        self._nudged.set()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped = True
        self._nudged.set()

    def _run(self) -> None:
        while not self._stopped:
            self._nudged.wait(self._pause() if self.tenant is not None else READ_SECONDS)
            self._nudged.clear()
            self.controller.work()
            self._look()

    def _pause(self) -> float:
        """Until a reading is due; then in ever longer steps, while instructions are too short to be judged."""
        overdue = time.monotonic() - self._judged_seconds - READ_SECONDS
        return min(max(TICK_SECONDS, -overdue, overdue / 4), READ_SECONDS)

    def _look(self) -> None:
        now = time.monotonic()
        if self.tenant is not None:
            self.tenant.upkeep()
        if self.controller.owes_unlock and now - self._tried_seconds > RETRY_UNLOCK_SECONDS:
            self._tried_seconds = now
            self.controller.pay()
        try:
            if self._may_judge(now):
                self._judge(now)
            elif now - self._read_seconds >= 2 * READ_SECONDS and now - self._tried_seconds >= 2 * READ_SECONDS:
                self._tried_seconds = now
                self._read()
            if now - self._throttle_seconds > THROTTLE_SECONDS:
                self._throttle_seconds = now
                self.throttled = self.controller.gpu.throttle_seconds()
        except HardwareError as error:
            self.failure = error.code
            self.controller.note(error)

    def _read(self) -> Reading:
        self._reading = self.controller.gpu.read()
        self._read_seconds = time.monotonic()
        self.failure = ""
        return self._reading

    def _may_judge(self, now: float) -> bool:
        period = DOUBT_SECONDS if self.held.reason else READ_SECONDS
        return (
            now - self._judged_seconds >= period
            and self.controller.requested_megahertz is not None
            and now - self.controller.since >= SETTLE_SECONDS
            and self.tenant is not None
            and self.tenant.running() is not None
        )

    def _judge(self, now: float) -> None:
        """Read under load; it counts only if clock and work were the same before and after, and no call under way."""
        controller, tenant = self.controller, self.tenant
        request = controller.settled_request
        if tenant is None or request is None:
            return
        requested, work = controller.requested_megahertz, tenant.running()
        self._tried_seconds = now
        reading = self._read()
        same = self.tenant is tenant and tenant.running() is work
        same = same and controller.settled_request == request
        if requested is None or work is None or not same or "gpu_idle" in reading.event_reasons:
            return
        seconds = min(now - self._judged_seconds, 2 * READ_SECONDS)
        self._judged_seconds = now
        verdict = self.held.judge(request, requested, reading, seconds)
        if verdict in (Verdict.REPLACED, Verdict.OVERRULED):
            controller.yield_to_others(ours_is_gone=verdict is Verdict.REPLACED)
        elif verdict is Verdict.HELD:
            controller.trusted()
