"""GPUs that the journal names and that could not be unlocked at the start: tried again until they are.

Until then nobody is served on them, so that an old entry is never taken for that of a new lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from perseus_daemonset.hardware import Gpus, HardwareError
from perseus_daemonset.journal import Journal
from perseus_daemonset.release import release_journalled

RETRY_SECONDS = 1.0


class Debts:
    """Locks of an agent before this one."""

    def __init__(self, journal: Journal, gpus: Gpus, owed: Iterable[str]) -> None:
        """Owe these GPUs their unlocking."""
        self._journal = journal
        self._gpus = gpus
        self._owed = set(owed)
        self._stopped = threading.Event()
        if self._owed:
            threading.Thread(target=self._pay, name="debts", daemon=True).start()

    def check(self, uuid: str) -> None:
        """Refuse a GPU that is owed its unlocking.

        Raises:
            HardwareError: it is.
        """
        if uuid in self._owed:
            raise HardwareError("unreleased", f"{uuid} could not be unlocked yet since an agent before this one died")

    def stop(self) -> None:
        """Try no more; the journal keeps what is left."""
        self._stopped.set()

    def _pay(self) -> None:
        while self._owed and not self._stopped.wait(RETRY_SECONDS):
            for uuid in sorted(self._owed):
                try:
                    self._gpus.gpu(uuid).reset()
                except HardwareError as error:
                    if error.code != "not_found":
                        continue
                try:
                    self._journal.remove(self._journal.entries().gpus.get(uuid, ()))
                except OSError:
                    continue
                self._owed.discard(uuid)


def pay_first(journal: Journal, gpus: Gpus) -> Debts:
    """Unlock what the journal names, before anything else; what cannot be is owed."""
    journal.tidy()
    return Debts(journal, gpus, release_journalled(journal, gpus))
