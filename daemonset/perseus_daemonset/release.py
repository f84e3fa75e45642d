"""Giving back what the journal says is locked; for the watchdog, the agent's start, and a person's hand."""

from __future__ import annotations

import logging

from perseus_daemonset.hardware import Gpus, HardwareError
from perseus_daemonset.journal import Journal

logger = logging.getLogger("perseus.agent")


def release_journalled(journal: Journal, gpus: Gpus) -> list[str]:
    """Unlock every GPU of the journal and strike it out; return those that could not be unlocked.

    A GPU that no longer exists is struck out: no lock is left on it.
    """
    failed = []
    for uuid in journal.entries():
        try:
            gpus.gpu(uuid).reset()
        except HardwareError as error:
            if error.code != "not_found":
                logger.error("%s", error)
                failed.append(uuid)
                continue
        logger.info("gave %s back", uuid)
        journal.strike(uuid)
    return failed
