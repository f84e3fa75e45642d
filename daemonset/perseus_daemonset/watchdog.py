"""The watchdog: gives clocks back when the agent was killed, and when the DaemonSet goes away with a hanging agent.

It waits for the agent's file lock, which the kernel takes from a dead process at once: no API, no kubelet, no polling
while the agent lives. It runs in a container of its own, so that what kills the agent spares it. Told to stop, which
the kubelet does to both containers at once, it waits for the agent's end; if the agent hangs, the watchdog kills it and
does its last duty before the grace is over, since nobody may come after them.
"""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType

from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.journal import Journal, holder_if_free, kill_holder, sole_holder
from perseus_daemonset.nvml import Nvml
from perseus_daemonset.release import release_journalled

PAUSE_SECONDS = 0.5
LAST_WAIT_SECONDS = 3.0  # less than the pod's grace (5 s in the chart) and more than the agent's own end (2 s)
DEATH_SECONDS = 0.5  # for a killed agent's death; one that hangs in the driver cannot die
logger = logging.getLogger("perseus.watchdog")


class _ToldToStop(Exception):
    """A signal came."""


def watch(folder: Path) -> None:
    """Release what a dead agent has left, until told to stop by SIGTERM or SIGINT.

    The file lock is held for the release alone, so that a starting agent waits milliseconds for it.
    """
    journal = Journal(folder)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        while True:
            with sole_holder(folder):
                _release(journal, "the agent is gone and left %d locked GPUs")
            time.sleep(PAUSE_SECONDS)
    except _ToldToStop:
        _last_duty(folder, journal)


def _last_duty(folder: Path, journal: Journal) -> None:
    deadline = time.monotonic() + LAST_WAIT_SECONDS
    last = deadline + DEATH_SECONDS
    killed = False
    while True:
        now = time.monotonic()
        try:
            with holder_if_free(folder) as free:
                if free or now > last:
                    _release(journal, "the agent ends and leaves %d locked GPUs")
                    return
            if now > deadline and not killed:
                # It may still serve: what is given back under its hands it would lock again, past the journal.
                killed = kill_holder(folder)
        except OSError as error:
            # Whether the agent has ended cannot be told: it has its time.
            if now > deadline:
                logger.error("the agent's file lock: %s", error)
                _release(journal, "the agent ends and may leave %d locked GPUs")
                return
        time.sleep(0.05)


def _release(journal: Journal, told: str) -> None:
    entries = journal.entries()
    if not entries.gpus and not entries.may_name_any_gpu:
        return
    logger.warning(told, len(entries.gpus))
    try:
        # A new session with NVML each time: the driver may have been replaced in between.
        release_journalled(journal, Nvml())
    except HardwareError as error:
        logger.error("%s", error)


def _stop(_number: int, _frame: FrameType | None) -> None:
    # Once: a second signal must not break the last duty off.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise _ToldToStop
