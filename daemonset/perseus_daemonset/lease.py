"""One trainer's connection is its lease on one GPU's clock: while it is open the plan is followed.

A thread of its own reads the connection and makes the NVML call of the boundary that it read: no hand-over delays it.
What has queued up meanwhile is read before the call (the newest wish wins). Plans and withdrawals come from other
threads, which leave a wish and do not wait for the device.

Between two boundaries a GPU computes, and what this thread touches leaves the processor's caches: a boundary costs by
how much it touches. So it calls little, and books only what must be booked in time: an iteration's boundaries, which
read the energy counter, and the end of the plan's order. The rest waits for these, or for the GPU's caretaker.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from perseus_api.instructions import Instruction
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Boundary, BoundaryKind, MessageError
from perseus_api.plan import Plan

from perseus_daemonset.accounting import RankAccount
from perseus_daemonset.bounds import MESSAGES_PER_SECOND, Rate
from perseus_daemonset.caretaker import Caretaker
from perseus_daemonset.follower import Follower, RankPlan
from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.intermission import patience_seconds
from perseus_daemonset.measuring.measurer import Measurer
from perseus_daemonset.pods import Pod

logger = logging.getLogger("perseus.agent")
MAXIMUM_BATCH = 256  # a flood must not keep a batch from its end
AT_ONCE_NANOSECONDS = 50_000
SPENT_AT_ONCE = 32  # messages between two looks at the bound on their rate
_ITERATION_BEGIN, _ITERATION_END = BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END
_ITERATION_BROKEN, _INSTRUCTION_BEGIN = BoundaryKind.ITERATION_BROKEN, BoundaryKind.INSTRUCTION_BEGIN
_INSTRUCTION_END = BoundaryKind.INSTRUCTION_END
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
        caretaker: of the GPU.
        controller: the GPU's clock.
        is_open: whether the connection lives.
        rate: bound on its messages.
        on_measured: called when an unlocked iteration was measured.
    """

    def __init__(
        self, key: RankKey, pod: Pod, connection: socket.socket, caretaker: Caretaker, account: RankAccount
    ) -> None:
        """Serve a connection whose peer was identified; see `run`."""
        self.key = key
        self.pod = pod
        self.follower = Follower()
        self.account = account
        self.caretaker = caretaker
        self.controller = caretaker.controller
        self.is_open = True
        self.rate = Rate(MESSAGES_PER_SECOND)
        self.on_measured: Callable[[], None] = lambda: None
        self._measured = account.unlocked.iterations
        self._connection = connection
        self._running: Instruction | None = None
        self._mutex = threading.Lock()
        # Boundaries that are not in the books yet, whether each ended the plan's order, and the clock when it came.
        self._unkept: deque[tuple[Boundary, bool, int | None]] = deque()
        self._books = threading.Lock()

    def begin(self) -> None:
        """Become the holder of the GPU."""
        self.controller.grant(self)
        self.caretaker.tenant = self

    @property
    def measurer(self) -> Measurer | None:
        """The rank's measurement, once a sweep has asked for one; it outlives the connection and the sweep."""
        return self.account.measurer

    @property
    def measured(self) -> bool:
        """Whether a sweep measures this rank now."""
        return self.is_open and self.measurer is not None and self.measurer.wanted

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
            self._measure(part)
            self.controller.wish(self, self.follower.offer(part))
        self.caretaker.nudge()

    def running(self) -> Instruction | None:
        """Return the instruction that runs now, if it has a clock."""
        running = self._running
        return running if running is not None and running.has_clock else None

    def upkeep(self) -> None:
        """Bring the books up to date, have a new baseline kept, give the clock back in an intermission."""
        if self._unkept:
            self._keep_books()
        measured = self.account.unlocked.iterations
        if measured != self._measured:
            self._measured = measured
            self.on_measured()
        if self._is_silent():
            self._intermit()

    def end(self) -> None:
        """End the lease from outside: its wishes are void from now on, and the reading thread notices."""
        self.controller.withdraw(self)
        self.caretaker.nudge()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def run(self) -> str:
        """Follow the trainer until the connection ends; return why it did. The clock is given back whatever happens."""
        try:
            return self._follow()
        finally:
            self.controller.withdraw(self)
            self.controller.work()
            self.is_open = False
            if self.caretaker.tenant is self:
                self.caretaker.tenant = None
            self._running = None
            self._keep_books()
            self.account.interrupted(self.follower.reference)
            if self.measurer is not None:
                self.measurer.interrupted()
            self.upkeep()
            self._connection.close()

    def _follow(self) -> str:
        connection, controller, account = self._connection, self.controller, self.account
        monotonic_ns = time.monotonic_ns
        connection.settimeout(None)
        unspent = 0
        while True:
            asked = monotonic_ns()
            try:
                packet = connection.recv(MAXIMUM_MESSAGE_BYTES + 1)
            except OSError as error:
                return f"lost: {error}"
            if not packet:
                return "closed"
            received = monotonic_ns()
            # One that had to be waited for has nothing behind it: not to look saves a system call before NVML's.
            may_queue = received - asked < AT_ONCE_NANOSECONDS
            before = controller.requested_megahertz
            batch = 1
            try:
                with self._mutex:
                    wish, must_be_booked = self._take(packet, before)
                    # Nor is there a look where no call is due.
                    while may_queue and wish != before and batch < MAXIMUM_BATCH and (packet := self._queued()):
                        wish, also = self._take(packet, before)
                        must_be_booked = must_be_booked or also
                        batch += 1
                    has_work = controller.wish(self, wish)
            except MessageError as error:
                return f"bad message: {error}"
            if has_work:
                controller.work(received)
            if must_be_booked or len(self._unkept) > MAXIMUM_BATCH:
                self._keep_books()
            if controller.requested_megahertz is not None and not account.was_locked:
                account.locked()
            unspent += batch
            if unspent >= SPENT_AT_ONCE:
                self.rate.spend(unspent)
                unspent = 0

    def _is_silent(self) -> bool:
        """Whether the clock is locked for an iteration that has not begun, though it is long due."""
        follower = self.follower
        ended, plan = follower.ended_nanoseconds, follower.reference
        # Without a lock of ours there is nothing to give back; one that somebody else replaced is none.
        if ended is None or plan is None or follower.in_intermission or self.controller.requested_megahertz is None:
            return False
        patience = patience_seconds(plan.predicted_seconds, self.account.unlocked_iteration_seconds)
        return time.monotonic_ns() - ended > patience * _NANOSECONDS

    def _intermit(self) -> None:
        with self._mutex:
            if not self._is_silent():
                return  # The next iteration has begun meanwhile.
            self.follower.intermit()
            if self.measurer is not None:
                self.measurer.intermission()
            self.controller.wish(self, None)
        self.caretaker.nudge()

    def _measure(self, part: RankPlan | None) -> None:
        """Measure while the plan is a sweep; the rows of another sweep are forgotten when it begins."""
        measurement = part.measurement if part is not None else ""
        if not measurement:
            if self.measurer is not None:
                self.measurer.wanted = False
            return
        measurer = self.measurer
        if measurer is None or measurer.measurement != measurement:
            measurer = self.account.measurer = Measurer(measurement)
        elif measurer.wanted and self.controller.on_call == measurer.request:
            return
        measurer.wanted = True
        measurer.request(time.monotonic_ns(), self.controller.requested_megahertz)
        self.controller.on_call = measurer.request

    def _take(self, packet: bytes, before: int | None) -> tuple[int | None, bool]:
        """Follow one boundary.

        Args:
            packet: the boundary.
            before: the clock that was locked when it came.

        Returns:
            The clock that should hold, and whether the boundary must be booked at once.
        """
        boundary = Boundary.unpack(packet)
        follower, measurer, kind = self.follower, self.account.measurer, boundary.kind
        wish = follower.follow(boundary)
        if measurer is not None and measurer.wanted:
            measurer.boundary(boundary, follower.clocks)
        finished_order = follower.finished_order
        self._unkept.append((boundary, finished_order, before))
        self._running = boundary.instruction if kind is _INSTRUCTION_BEGIN else None
        return wish, finished_order or (kind is not _INSTRUCTION_BEGIN and kind is not _INSTRUCTION_END)

    def _queued(self) -> bytes:
        try:
            return self._connection.recv(MAXIMUM_MESSAGE_BYTES + 1, socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def _keep_books(self) -> None:
        """Book what has come, after the clock is set, which is what hurries."""
        with self._books:
            taken = []
            while self._unkept:
                taken.append(self._unkept.popleft())
            if taken:
                self._book(taken)

    def _book(self, taken: list[tuple[Boundary, bool, int | None]]) -> None:
        plan, account = self.follower.reference, self.account
        last = taken[-1][0]
        for boundary, finished_order, before in taken:
            kind = boundary.kind
            account.instructions.take(boundary, before, plan)
            account.order.take(boundary)
            if kind is _ITERATION_BEGIN:
                # Of several at once only the newest meets the energy counter as it was when it began.
                newest = next(each for each, _, _ in reversed(taken) if each.kind is _ITERATION_BEGIN)
                self._begin_iteration(boundary, plan, boundary is newest)
            elif kind is _ITERATION_END:
                # Only an end after which nothing has come yet meets the counter in time.
                account.end_iteration(boundary, self._energy_joules() if boundary is last else None)
            elif kind is _ITERATION_BROKEN:
                account.break_iteration(boundary, self._energy_joules() if boundary is last else None, plan)
            else:
                account.instruction(boundary, finished_order)

    def _begin_iteration(self, began: Boundary, plan: RankPlan | None, is_newest: bool) -> None:
        joules = self._energy_joules() if is_newest else None
        behind = (time.monotonic_ns() - began.time_nanoseconds) / _NANOSECONDS
        self.account.begin_iteration(began, joules, time.time() - behind, plan)
        if self.account.unlocked.iterations != self._measured:
            self.caretaker.nudge()

    def _energy_joules(self) -> float | None:
        try:
            return self.controller.gpu.energy_joules()
        except HardwareError as error:
            self.controller.note(error)
            return None
