"""All jobs' ledgers, read and shown by one query every few seconds; writing them down is the visits' work.

A ledger is opened by the first visit to its job, from what an earlier operator wrote. The window of the query reaches
back to the oldest reading, so that what happened while no operator ran is counted, once. Figures are shown only after a
reading, never as they were opened, so that they do not go back when an operator dies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from perseus_operator import metrics
from perseus_operator.counters import OVERLAP_SECONDS, JobKey, JobReadings
from perseus_operator.ledger import Ledger, Situation
from perseus_operator.prometheus import NoAnswer

ROUND_SECONDS = 15.0
WRITE_SECONDS = 60.0
LONGEST_WINDOW_SECONDS = 86_400.0
# An agent shows the counters of a pod that is gone for a little over two minutes.
REMEMBER_GONE_SECONDS = 600.0
logger = logging.getLogger("perseus.operator")


class CounterSource(Protocol):
    """Who is asked for the counters."""

    async def counters(self, window_seconds: float) -> dict[JobKey, JobReadings]:
        """Return the agents' counters over the last seconds.

        Raises:
            NoAnswer: there are none to be had now.
        """
        ...


class Accounts:
    """The ledgers.

    Attributes:
        enabled: whether there is a Prometheus at all.
    """

    def __init__(
        self, situation: Callable[[JobKey], Situation], ask_for_visit: Callable[[JobKey], None], enabled: bool
    ) -> None:
        """Keep ledgers.

        Args:
            situation: says what a job is doing now.
            ask_for_visit: has a job visited, that its ledger be written down.
            enabled: whether there is a Prometheus at all.
        """
        self.enabled = enabled
        self._ask = ask_for_visit
        self._asked: dict[JobKey, float] = {}
        self._situation = situation
        self._ledgers: dict[JobKey, Ledger] = {}
        self._gone: dict[JobKey, tuple[float, frozenset[str]]] = {}

    def find(self, key: JobKey, uid: str) -> Ledger | None:
        """Return a job's ledger; that of an earlier job of the same name is closed."""
        ledger = self._ledgers.get(key)
        if ledger is not None and ledger.uid != uid:
            self.forget(key)
            return None
        return ledger

    def open(self, key: JobKey, ledger: Ledger) -> None:
        """Keep a ledger."""
        self._ledgers[key] = ledger

    def forget(self, key: JobKey) -> None:
        """Close the ledger of a job that is gone; its pods stay known: the next job of its name owes nothing."""
        ledger = self._ledgers.pop(key, None)
        self._asked.pop(key, None)
        if ledger is not None:
            self._gone[key] = (time.time() + REMEMBER_GONE_SECONDS, ledger.pods)

    def close(self, key: JobKey) -> None:
        """Close the ledger of a job that has reported."""
        self._ledgers.pop(key, None)

    async def run(self, source: CounterSource) -> None:
        """Bring the ledgers up to date until cancelled."""
        while True:
            begin = time.monotonic()
            try:
                await self.read(source)
            except NoAnswer as error:
                logger.warning("accounting waits: %s", error)
            await asyncio.sleep(max(1.0, ROUND_SECONDS - (time.monotonic() - begin)))

    async def read(self, source: CounterSource) -> None:
        """Bring the ledgers up to date, and show them on the metrics page.

        Raises:
            NoAnswer: the counters are not to be had now; the next reading reaches further back.
        """
        if not self._ledgers:
            return
        now = time.time()
        # From before the answer is asked for: what it shows beyond that is shown again, and counts once.
        window = _window_seconds(self._ledgers.values(), now)
        found = await source.counters(window)
        self._gone = {key: each for key, each in self._gone.items() if now < each[0]}
        since = now - window - OVERLAP_SECONDS
        for key, ledger in self._ledgers.items():
            foreign = self._gone.get(key, (0.0, frozenset()))[1]
            before = ledger.totals.model_copy()
            ledger.take(found.get(key, JobReadings()), now, self._situation(key), since, foreign)
            if ledger.totals.energy_joules > 0:
                metrics.tell_totals(*key, ledger.totals)
            if ledger.totals != before:
                self._ask_in_time(key)

    def _ask_in_time(self, key: JobKey) -> None:
        now = time.monotonic()
        if now >= self._asked.get(key, float("-inf")) + WRITE_SECONDS:
            self._asked[key] = now
            self._ask(key)


def _window_seconds(ledgers: Iterable[Ledger], now: float) -> float:
    known = [each.read_unix_seconds for each in ledgers if each.read_unix_seconds > 0]
    return min(LONGEST_WINDOW_SECONDS, max(1.0, now - min(known, default=now - ROUND_SECONDS)))
