"""The serial hand on one GPU's clock: skips equal values, bounds the rate of changes, writes the journal first.

Only the newest wish counts; whoever wishes while a call is under way waits for it (NVML calls are short) and then says
what is newest. It knows no plan and no trainer.
"""

from __future__ import annotations

import logging
import threading
import time

from perseus_daemonset.hardware import Gpu, HardwareError
from perseus_daemonset.journal import Journal

RETRY_AFTER_ERROR_SECONDS = 30.0
RETRY_UNLOCK_SECONDS = 1.0
logger = logging.getLogger("perseus.agent")


class ClockController:
    """Sets and gives back one GPU's clock.

    Attributes:
        changes: successful NVML lock and reset calls.
        held_back: slower clocks that were not set because of the rate's bound.
        errors: failed NVML calls by code.
    """

    def __init__(self, gpu: Gpu, journal: Journal, changes_per_second: float) -> None:
        """Control a GPU, with at most so many changes a second on average (bursts of one second's worth)."""
        self.gpu = gpu
        self.changes = 0
        self.held_back = 0
        self.errors: dict[str, int] = {}
        self._journal = journal
        self._rate = changes_per_second
        self._tokens = changes_per_second
        self._filled_seconds = time.monotonic()
        self._requested: int | None = None
        self._journalled = False
        self._refused_until = 0.0
        self._owes_unlock = False
        self._mutex = threading.Lock()

    @property
    def requested_megahertz(self) -> int | None:
        """The clock that is locked, None when unlocked."""
        return self._requested

    def set(self, megahertz: int | None) -> bool:
        """Lock the clock at a value, or unlock it for None; return whether an NVML call was made.

        Never raises: after an error the GPU is unlocked as far as it lets itself, and left alone for a while.
        """
        with self._mutex:
            if megahertz is None:
                return self._unlock()
            if megahertz == self._requested or time.monotonic() < self._refused_until:
                return False
            if not self._may_change() and (self._requested is None or megahertz < self._requested):
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
            self._note(error)
            self._refused_until = time.monotonic() + RETRY_AFTER_ERROR_SECONDS
            self._unlock()
            return True
        self._requested = megahertz
        self._owes_unlock = False
        self._tokens -= 1
        self.changes += 1
        return True

    def _unlock(self) -> bool:
        if not self._journalled:
            return False
        try:
            self.gpu.reset()
        except HardwareError as error:
            # The entry stays, and with it the duty to try again, though nobody may wish anything any more.
            self._note(error)
            if not self._owes_unlock:
                self._owes_unlock = True
                threading.Thread(target=self._pay, name="unlock", daemon=True).start()
            return True
        self._owes_unlock = False
        self._requested = None
        self.changes += 1
        self._tokens -= 1
        try:
            self._journal.strike(self.gpu.uuid)
        except OSError as error:
            # A reset too many at the next start does no harm.
            self._note(error)
        self._journalled = False
        return True

    def _pay(self) -> None:
        while True:
            time.sleep(RETRY_UNLOCK_SECONDS)
            with self._mutex:
                if self._owes_unlock:
                    self._unlock()
                if not self._owes_unlock:
                    return

    def _may_change(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled_seconds) * self._rate)
        self._filled_seconds = now
        return self._tokens >= 1

    def _note(self, error: HardwareError | OSError) -> None:
        code = error.code if isinstance(error, HardwareError) else "journal"
        self.errors[code] = self.errors.get(code, 0) + 1
        logger.error("%s", error)
