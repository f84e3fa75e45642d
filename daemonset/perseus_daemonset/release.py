"""Giving back what the journal says is locked; for the watchdog, the agent's start and end, and a person's hand."""

from __future__ import annotations

import logging
import threading
import time

from perseus_daemonset.hardware import Gpus, HardwareError
from perseus_daemonset.journal import Journal

TIMEOUT_SECONDS = 4.0
logger = logging.getLogger("perseus.agent")


def release_journalled(journal: Journal, gpus: Gpus, timeout_seconds: float = TIMEOUT_SECONDS) -> list[str]:
    """Unlock every GPU of the journal and strike it out; return those that could not be unlocked in time.

    All at once: a device that hangs must not keep the others locked. A GPU that no longer exists is struck out, since
    no lock is left on it. Where the journal is damaged so that it may name any GPU, every GPU of the node is unlocked:
    a lock of somebody else's is then lost, which is the lesser harm.
    """
    entries = journal.entries()
    wanted = set(entries.gpus)
    if entries.may_name_any_gpu:
        logger.warning("the journal is damaged and may name any GPU of this node: all of them are unlocked")
        try:
            wanted |= set(gpus.uuids())
        except HardwareError as error:
            logger.error("%s", error)
    released: set[str] = set()
    threads = [
        threading.Thread(target=_release, args=(gpus, uuid, released), name="release", daemon=True) for uuid in wanted
    ]
    deadline = time.monotonic() + timeout_seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    done = set(released)
    failed = sorted(wanted - done)
    try:
        for uuid in sorted(done & set(entries.gpus)):
            journal.remove(entries.gpus[uuid])
            logger.info("gave %s back", uuid)
        if entries.damaged and not failed:
            journal.remove(entries.damaged)
    except OSError as error:
        # A reset too many at the next start does no harm.
        logger.error("the journal cannot be written: %s", error)
    return failed


def _release(gpus: Gpus, uuid: str, released: set[str]) -> None:
    try:
        gpus.gpu(uuid).reset()
    except HardwareError as error:
        if error.code != "not_found":
            logger.error("%s", error)
            return
    released.add(uuid)
