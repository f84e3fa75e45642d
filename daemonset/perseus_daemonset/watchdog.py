"""The watchdog: gives clocks back when the agent was killed.

It waits for the agent's file lock, which the kernel takes from a dead process at once: no API, no kubelet, no polling
while the agent lives. It runs in a container of its own, so that what kills the agent spares it.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.journal import Journal, sole_holder
from perseus_daemonset.nvml import Nvml
from perseus_daemonset.release import release_journalled

PAUSE_SECONDS = 0.5
logger = logging.getLogger("perseus.watchdog")


def watch(folder: Path, stopped: threading.Event) -> None:
    """Release what a dead agent has left, until told to stop.

    The file lock is held for the release alone, so that a starting agent waits milliseconds for it.
    """
    journal = Journal(folder)
    while not stopped.is_set():
        with sole_holder(folder):
            if journal.entries():
                logger.warning("the agent is gone and left %d locked GPUs", len(journal.entries()))
                try:
                    # A new session with NVML each time: the driver may have been replaced in between.
                    release_journalled(journal, Nvml())
                except HardwareError as error:
                    logger.error("%s", error)
        stopped.wait(PAUSE_SECONDS)
