"""Which jobs to visit, and when: each at most once at a time, the earliest wish wins, failures back off.

What is urgent (a job that was never visited, a straggler) goes before what only might have changed, so that a thousand
new jobs get their plans before the first of them is looked at again.

Level-based: a visit asks nothing about why it was wanted. The queue is a heap with entries left behind: whoever is
wanted earlier is pushed again, and an entry whose time is no longer the job's is passed over.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable

from perseus_operator import metrics
from perseus_operator.client import ApiRefusal, is_away

JobKey = tuple[str, str]  # namespace, name
Visit = Callable[[JobKey], Awaitable[float | None]]
WORKERS = 8
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 30.0
# Where nobody answers, no job is at fault: it counts for none, and all of them wait for the return.
AWAY_SECONDS = 2.0
logger = logging.getLogger("perseus.operator")


class VisitQueue:
    """Calls `visit` for the keys that were added, in WORKERS tasks at once.

    Attributes:
        is_away: whether the last visit that ended found no API server: one at a time then looks for it.
    """

    def __init__(self, visit: Visit) -> None:
        """Visit by a function that returns the seconds after which to come again, None for not."""
        self.is_away = False
        self._visit = visit
        self._due: dict[JobKey, float] = {}
        self._heap: list[tuple[float, JobKey]] = []
        self._urgent: dict[JobKey, float] = {}
        self._visited: set[JobKey] = set()
        self._running: dict[JobKey, float] = {}
        self._failures: dict[JobKey, int] = {}
        self._successes = 0
        self._missed: dict[JobKey, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: JobKey, delay_seconds: float = 0.0, urgent: bool = False) -> None:
        """Visit a job, after a delay at the latest; before others if that is urgent or the first time."""
        now = asyncio.get_running_loop().time()
        if urgent or key not in self._visited:
            self._urgent.setdefault(key, now)
            self._wake.set()
            return
        due = now + delay_seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._wake.set()

    def hurries(self) -> bool:
        """Whether somebody waits for a worker whose visit is urgent."""
        return bool(self._urgent)

    def overdue_seconds(self) -> float:
        """Return for how long the longest waiting visit has been due; 0 if none is."""
        now = asyncio.get_running_loop().time()
        wishes = [*self._due.items(), *self._urgent.items()]
        return max(0.0, now - min((due for key, due in wishes if key not in self._running), default=now))

    def longest_visit_seconds(self) -> float:
        """Return for how long the oldest of the running visits has been running; 0 if none is."""
        now = asyncio.get_running_loop().time()
        return now - min(self._running.values(), default=now)

    def depth(self) -> int:
        """Return how many visits are due and wait for a worker."""
        now = asyncio.get_running_loop().time()
        due = {key for key, due in self._due.items() if due <= now} | self._urgent.keys()
        return len(due - self._running.keys())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                pause = self._begin_due(group)
                try:
                    await asyncio.wait_for(self._wake.wait(), pause)
                except TimeoutError:
                    continue

    def _begin_due(self, group: asyncio.TaskGroup) -> float | None:
        """Begin what is due; return the seconds until the next is, None if somebody will wake us."""
        now = asyncio.get_running_loop().time()
        workers = 1 if self.is_away else WORKERS
        for key in [key for key in self._urgent if key not in self._running][: max(0, workers - len(self._running))]:
            del self._urgent[key]
            self._due.pop(key, None)
            self._begin(group, key, now)
        held: list[tuple[float, JobKey]] = []
        pause = None
        while self._heap and len(self._running) < workers:
            due, key = self._heap[0]
            if due > now:
                pause = due - now
                break
            heapq.heappop(self._heap)
            if self._due.get(key) != due:
                continue
            if key in self._running:
                held.append((due, key))
                continue
            del self._due[key]
            self._begin(group, key, now)
        for entry in held:
            heapq.heappush(self._heap, entry)
        return pause

    def _begin(self, group: asyncio.TaskGroup, key: JobKey, now: float) -> None:
        self._visited.add(key)
        self._running[key] = now
        group.create_task(self._work(key))

    async def _work(self, key: JobKey) -> None:
        try:
            again = await self._visit(key)
        except Exception as error:  # noqa: BLE001 - one job's trouble must not stop the visits of others
            self.is_away = self._finds_nobody(key, error)
            pause = AWAY_SECONDS if self.is_away else self._count_failure(key)
            reason = f"http_{error.status}" if isinstance(error, ApiRefusal) else type(error).__name__
            metrics.VISIT_ERRORS.labels(reason=reason).inc()
            told = {"namespace": key[0], "job": key[1], "reason": reason}
            logger.warning("%s/%s: %s: %s; again in %.1f s", *key, type(error).__name__, error, pause, extra=told)
            self._running.pop(key, None)
            self.add(key, pause)
        else:
            self.is_away = False
            self._successes += 1
            self._missed.pop(key, None)
            self._failures.pop(key, None)
            self._running.pop(key, None)
            if again is not None:
                self.add(key, again)
            elif key not in self._due:
                self._visited.discard(key)
        self._wake.set()

    def _finds_nobody(self, key: JobKey, error: Exception) -> bool:
        """Whether an error says that the API server is away: not if others found it since the job last said so."""
        if not is_away(error):
            return False
        before = self._missed.get(key, self._successes)
        self._missed[key] = self._successes
        return before == self._successes

    def _count_failure(self, key: JobKey) -> float:
        """Count one more failure of a job; return the pause after it."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10))
