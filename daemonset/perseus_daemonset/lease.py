"""One trainer's connection is its lease on one GPU's clock: while it is open the plan is followed.

A thread of its own reads the connection: the NVML call of a boundary is made by whoever read the boundary, and what has
queued up meanwhile is read before the next call (the newest wish wins).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from dataclasses import dataclass

from perseus_api.messages import BOUNDARY_BYTES, MAXIMUM_MESSAGE_BYTES, Boundary, BoundaryKind, MessageError
from perseus_api.plan import Plan

from perseus_daemonset.accounting import RankAccount
from perseus_daemonset.controller import ClockController
from perseus_daemonset.follower import Follower, RankPlan
from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.measuring.measurer import Measurer
from perseus_daemonset.metrics import CALL_SECONDS
from perseus_daemonset.pods import Pod

logger = logging.getLogger("perseus.agent")
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RankKey:
    """Which rank of which job, in which pod, on which GPU."""

    namespace: str
    job: str
    pipeline: int
    stage: int
    tensor_rank: int
    pod: str
    gpu: str


class Lease:
    """A served connection.

    Attributes:
        key: the rank.
        pod: its pod.
        follower: where the trainer is in its plan.
        account: the rank's books; they outlive the connection.
        controller: the GPU's clock.
    """

    def __init__(
        self, key: RankKey, pod: Pod, connection: socket.socket, controller: ClockController, account: RankAccount
    ) -> None:
        """Serve a connection whose peer was identified; see `run`."""
        self.key = key
        self.pod = pod
        self.follower = Follower()
        self.account = account
        self.controller = controller
        self._connection = connection
        self._mutex = threading.Lock()
        self._ended = False

    @property
    def measurer(self) -> Measurer | None:
        """The rank's measurement, once a sweep has asked for one; it outlives the connection and the sweep."""
        return self.account.measurer

    @property
    def measured(self) -> bool:
        """Whether a sweep measures this rank now."""
        return not self._ended and self.measurer is not None and self.measurer.wanted

    @property
    def ended(self) -> bool:
        """Whether the connection is gone."""
        return self._ended

    def offer(self, plan: Plan | None) -> None:
        """Take the job's newest plan, or its withdrawal: the clock is given back at once."""
        part = None
        if plan is not None and (not self.pod.job_uid or plan.job.uid == self.pod.job_uid):
            try:
                part = RankPlan.of(plan, self.key.pipeline, self.key.stage)
            except IndexError:
                logger.warning(
                    "plan %d has no pipeline %d stage %d", plan.generation, self.key.pipeline, self.key.stage
                )
        with self._mutex:
            if not self._ended:
                self._measure(part)
                self._set(self.follower.offer(part))

    def end(self) -> None:
        """End the lease from outside; the reading thread notices."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def run(self) -> str:
        """Follow the trainer until the connection ends; return why it did. The clock is given back whatever happens."""
        try:
            return self._follow()
        finally:
            with self._mutex:
                self._ended = True
                self.controller.set(None)
                self.account.interrupted()
                if self.measurer is not None:
                    self.measurer.interrupted()
            self._connection.close()

    def _follow(self) -> str:
        connection = self._connection
        connection.settimeout(None)
        while True:
            try:
                packet = connection.recv(MAXIMUM_MESSAGE_BYTES + 1)
            except OSError as error:
                return f"lost: {error}"
            if not packet:
                return "closed"
            received = time.monotonic_ns()
            try:
                with self._mutex:
                    wish, began = self._take(packet)
                    while packet := _queued(connection):
                        wish, began_too = self._take(packet)
                        began = began_too or began
                    called = self._set(wish)
                    if called:
                        CALL_SECONDS.observe((time.monotonic_ns() - received) / _NANOSECONDS)
                    self._keep_books(began)
            except MessageError as error:
                return f"bad message: {error}"

    def _measure(self, part: RankPlan | None) -> None:
        """Measure while the plan is a sweep; the rows of another sweep are forgotten when it begins."""
        measurement = part.measurement if part is not None else ""
        if not measurement:
            if self.measurer is not None:
                self.measurer.wanted = False
        elif self.measurer is None or self.measurer.measurement != measurement:
            self.account.measurer = Measurer(measurement)
            self.account.measurer.request(time.monotonic_ns(), self.controller.requested_megahertz)
        else:
            self.measurer.wanted = True

    def _set(self, wish: int | None) -> bool:
        """Set the clock, and tell the measurement when it was asked for; return whether an NVML call was made."""
        begin = time.monotonic_ns()
        called = self.controller.set(wish)
        if called and self.measurer is not None:
            self.measurer.request(begin, self.controller.requested_megahertz)
        return called

    def _take(self, packet: bytes) -> tuple[int | None, Boundary | None]:
        """Follow one boundary; return the clock that should hold, and the boundary if it begins an iteration."""
        if len(packet) != BOUNDARY_BYTES:
            raise MessageError(f"a boundary has {BOUNDARY_BYTES} bytes, this packet has {len(packet)}")
        boundary = Boundary.unpack(packet)
        wish = self.follower.follow(boundary)
        if self.measurer is not None and self.measurer.wanted:
            self.measurer.boundary(boundary, self.follower.clocks)
        if boundary.kind is BoundaryKind.ITERATION_BEGIN:
            return wish, boundary
        if boundary.kind is BoundaryKind.ITERATION_END:
            self.account.end_iteration(boundary)
        else:
            self.account.instruction(boundary, self.follower.finished_order)
        return wish, None

    def _keep_books(self, began: Boundary | None) -> None:
        """After the clock is set, which is what hurries: read the energy counter where an iteration began."""
        if began is not None:
            try:
                joules: float | None = self.controller.gpu.energy_joules()
            except HardwareError as error:
                self.controller.errors[error.code] = self.controller.errors.get(error.code, 0) + 1
                joules = None
            behind = (time.monotonic_ns() - began.time_nanoseconds) / _NANOSECONDS
            self.account.begin_iteration(began, joules, time.time() - behind, self.follower.reference)
        if self.controller.requested_megahertz is not None:
            self.account.locked()


def _queued(connection: socket.socket) -> bytes:
    try:
        return connection.recv(MAXIMUM_MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)
    except OSError:
        return b""
