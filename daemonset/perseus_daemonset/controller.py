"""The serial hand on one GPU's clock: the newest wish wins, equal values are skipped, the rate of changes is bounded.

A wish is left in a slot; whoever finds the hand free carries out what is newest in it, and looks again before it lets
go, so that no wish is lost and nobody waits for somebody else's call. The thread that read a boundary thereby makes the
call itself (no hand-over on the fast way), and a thread of the GPU's own (`Caretaker`) does it for those who must not
wait for a device: the API's watches, other GPUs, the metrics page.

The journal is written before the first lock. Only the holder of the GPU (a lease) may wish; what an older one still
says is not heard.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from perseus_daemonset.hardware import Gpu, HardwareError
from perseus_daemonset.journal import Journal
from perseus_daemonset.latency import CallLatency

RETRY_AFTER_ERROR_SECONDS = 30.0
FIRST_YIELD_SECONDS = 60.0
LONGEST_YIELD_SECONDS = 3600.0
LOG_SECONDS = 60.0
INTERFERENCE = "interference"
JOURNAL = "journal"
logger = logging.getLogger("perseus.agent")


class ClockController:
    """Sets and gives back one GPU's clock. Never raises: after an error the GPU is unlocked as far as it lets itself.

    Attributes:
        requested_megahertz: the clock that is locked, None when unlocked; nobody else sets it.
        changes: successful NVML lock and reset calls.
        held_back: slower clocks that were not set because of the rate's bound.
        interferences: how often somebody else changed the clock under us.
        errors: failed NVML calls by code.
        problem: why the clock is not set though it is wished: an error's code, ``interference``, or nothing.
        request: number of the newest call that set or reset the clock.
        since: monotonic time of that call.
        on_call: told after each call when it began (nanoseconds), and which clock is requested now (None: given back).
        latency: from a boundary's receipt to the end of its call.
    """

    def __init__(self, gpu: Gpu, journal: Journal, changes_per_second: float) -> None:
        """Control a GPU, with at most so many changes a second on average (bursts of one second's worth)."""
        self.gpu = gpu
        self.changes = 0
        self.held_back = 0
        self.interferences = 0
        self.errors: dict[str, int] = {}
        self.problem = ""
        self.request = 0
        self.since = 0.0
        self.on_call: Callable[[int, int | None], None] | None = None
        self.latency = CallLatency()
        self._journal = journal
        self._rate = changes_per_second
        self._tokens = changes_per_second
        self._filled_seconds = time.monotonic()
        self.requested_megahertz: int | None = None
        self._journalled = False
        self._pause_until = 0.0
        self._yield_seconds = FIRST_YIELD_SECONDS
        self._owes_unlock = False
        self._quiet_until: dict[str, float] = {}
        self._holder: object | None = None
        self._closed = False
        self._wish: int | None = None
        self._pending = False
        self._slot = threading.Lock()  # held for an assignment
        self._hand = threading.Lock()  # held during an NVML call

    @property
    def is_locked(self) -> bool:
        """Whether something may be locked by us, or is about to be settled."""
        return self._journalled or self._pending

    @property
    def settled_request(self) -> int | None:
        """Number of the newest request, None while a call is under way: the device then does neither it nor the next.

        A look at the device tells of a request whose number was this before the look and still is after it.
        """
        return None if self._hand.locked() else self.request

    @property
    def owes_unlock(self) -> bool:
        """Whether a reset failed: it must be tried again, though nobody may wish anything any more."""
        return self._owes_unlock

    def grant(self, holder: object) -> None:
        """Make a lease the holder; what the one before wished is void."""
        with self._slot:
            self._holder = holder
            self._leave(None)

    def withdraw(self, holder: object) -> None:
        """Give the GPU up, if this lease still holds it; the clock is to be given back."""
        with self._slot:
            if self._holder is holder:
                self._holder = None
                self._leave(None)

    def close(self) -> None:
        """The agent ends: from now on nothing is locked, whoever wishes it."""
        with self._slot:
            self._closed = True
            self._leave(None)

    def wish(self, holder: object, megahertz: int | None) -> bool:
        """Leave a wish in the slot: a clock, or None for unlocked; return whether there is work. See `work`."""
        # Looked at without the slot: whoever leaves another wish just now would have won after this one as well.
        if megahertz == self._wish and megahertz == self.requested_megahertz and not self._pending:
            return False
        with self._slot:
            if self._holder is holder and not self._closed:
                self._wish, self._pending = megahertz, True
        return True

    def work(self, received_nanoseconds: int | None = None) -> None:
        """Carry out the newest wish if nobody is about it.

        Args:
            received_nanoseconds: when the boundary came that this is for.
        """
        while self._pending and self._hand.acquire(blocking=False):
            try:
                with self._slot:
                    wish, self._pending = self._wish, False
                begin = time.monotonic_ns()
                if self._set(wish):
                    if received_nanoseconds is not None:
                        self.latency.observe(time.monotonic_ns() - received_nanoseconds)
                    self._tell(begin)
            finally:
                self._hand.release()

    def pay(self) -> None:
        """Try a reset again that failed."""
        with self._hand:
            if self._owes_unlock:
                begin = time.monotonic_ns()
                self._unlock()
                self._tell(begin)
        self.work()

    def yield_to_others(self, *, ours_is_gone: bool) -> None:
        """Somebody else set or reset the clock: it is left alone for a while; each time in a row doubles the while.

        Args:
            ours_is_gone: nothing of ours is left on the device: the journal's entry goes without a reset, which would
                undo what the other one did. Else the entry stays, and the reset comes with the lease's end.
        """
        with self._hand:
            self.interferences += 1
            self._pause(self._yield_seconds, INTERFERENCE)
            logger.warning(
                "%s: somebody else set or reset the clock that was locked at %s MHz; it is left alone for %.0f s",
                self.gpu.uuid, self.requested_megahertz, self._yield_seconds,
            )  # fmt: skip
            self._yield_seconds = min(2 * self._yield_seconds, LONGEST_YIELD_SECONDS)
            self.requested_megahertz = None
            self.request += 1
            if ours_is_gone:
                self._owes_unlock = False
                self._strike()
        self.work()

    def trusted(self) -> None:
        """The clock is held as asked: whoever interfered has not done so again."""
        if time.monotonic() > self._pause_until + self._yield_seconds:
            self._yield_seconds = FIRST_YIELD_SECONDS

    def note(self, error: HardwareError | OSError) -> None:
        """Count a failed call; the same again and again is logged once a minute."""
        code = error.code if isinstance(error, HardwareError) else JOURNAL
        self.errors[code] = self.errors.get(code, 0) + 1
        now = time.monotonic()
        if now >= self._quiet_until.get(code, 0.0):
            self._quiet_until[code] = now + LOG_SECONDS
            logger.error("%s", error)

    def _tell(self, begin_nanoseconds: int) -> None:
        if self.on_call is not None:
            self.on_call(begin_nanoseconds, self.requested_megahertz)

    def _leave(self, megahertz: int | None) -> None:
        self._wish, self._pending = megahertz, True

    def _set(self, megahertz: int | None) -> bool:
        if megahertz is None:
            return self._unlock()
        if megahertz == self.requested_megahertz or time.monotonic() < self._pause_until:
            return False
        if not self._may_change() and (self.requested_megahertz is None or megahertz < self.requested_megahertz):
            # Beyond the bound the faster clock stays (unlocked is the fastest): our restraint slows nobody.
            self.held_back += 1
            return False
        return self._lock(megahertz)

    def _lock(self, megahertz: int) -> bool:
        try:
            if not self._journalled:
                self._journal.write(self.gpu.uuid)
                self._journalled = True
            self.gpu.lock(megahertz)
        except (HardwareError, OSError) as error:
            self.note(error)
            self._pause(RETRY_AFTER_ERROR_SECONDS, error.code if isinstance(error, HardwareError) else JOURNAL)
            self._unlock()
            return True
        self._changed(megahertz)
        self.problem = ""
        return True

    def _unlock(self) -> bool:
        if not self._journalled:
            return False
        try:
            self.gpu.reset()
        except HardwareError as error:
            self.note(error)
            self._owes_unlock = True
            return True
        self._owes_unlock = False
        self._changed(None)
        self._strike()
        return True

    def _changed(self, megahertz: int | None) -> None:
        self.requested_megahertz = megahertz
        self._tokens -= 1
        self.changes += 1
        self.request += 1
        self.since = time.monotonic()

    def _strike(self) -> None:
        try:
            self._journal.strike(self.gpu.uuid)
        except OSError as error:
            # A reset too many at the next start does no harm.
            self.note(error)
        self._journalled = False

    def _pause(self, seconds: float, problem: str) -> None:
        self._pause_until = time.monotonic() + seconds
        self.problem = problem

    def _may_change(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled_seconds) * self._rate)
        self._filled_seconds = now
        return self._tokens >= 1
