"""Which jobs to visit, and when: each at most once at a time, the earliest wish wins, failures back off.

Level-based: a visit asks nothing about why it was wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

JobKey = tuple[str, str]  # namespace, name
Visit = Callable[[JobKey], Awaitable[float | None]]
WORKERS = 8
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 60.0
logger = logging.getLogger("perseus.operator")


class VisitQueue:
    """Calls `visit` for the keys that were added, in WORKERS tasks at once."""

    def __init__(self, visit: Visit) -> None:
        """Visit by a function that returns the seconds after which to come again, None for not."""
        self._visit = visit
        self._due: dict[JobKey, float] = {}
        self._running: set[JobKey] = set()
        self._failures: dict[JobKey, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: JobKey, delay_seconds: float = 0.0) -> None:
        """Visit a job, after a delay at the latest."""
        due = asyncio.get_running_loop().time() + delay_seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._wake.set()

    def forget(self, key: JobKey) -> None:
        """Visit a job no more, unless it is added again."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                now = asyncio.get_running_loop().time()
                ready = [key for key, due in self._due.items() if due <= now and key not in self._running]
                for key in ready[: max(0, WORKERS - len(self._running))]:
                    del self._due[key]
                    self._running.add(key)
                    group.create_task(self._work(key))
                waiting = [due for key, due in self._due.items() if key not in self._running]
                busy = len(self._running) >= WORKERS
                pause = None if busy or not waiting else max(0.0, min(waiting) - now)
                try:
                    await asyncio.wait_for(self._wake.wait(), pause)
                except TimeoutError:
                    continue

    async def _work(self, key: JobKey) -> None:
        try:
            again = await self._visit(key)
        except Exception as error:  # noqa: BLE001 - one job's trouble must not stop the visits of others
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            pause = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))
            logger.warning("%s/%s: %s: %s; again in %.1f s", *key, type(error).__name__, error, pause)
            self._running.discard(key)
            self.add(key, pause)
        else:
            self._failures.pop(key, None)
            self._running.discard(key)
            if again is not None:
                self.add(key, again)
        self._wake.set()
