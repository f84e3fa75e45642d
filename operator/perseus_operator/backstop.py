"""What stands behind the watch: now and then all jobs are listed, and a job that the watch has not told of is visited.

A watch that silently stands still is the one failure that no visit notices. A job that stays untold over two rounds
means that it does, and the operator's health says so, so that the kubelet starts it anew. Plans without a job are
looked for on the way.
"""

from __future__ import annotations

import asyncio
import logging

from perseus_operator import metrics
from perseus_operator.client import API_TROUBLES, Document
from perseus_operator.reconcile import Reconciler
from perseus_operator.visits import JobKey, VisitQueue

ROUND_SECONDS = 120.0
logger = logging.getLogger("perseus.operator")


class Backstop:
    """Compares what is there with what the watch told.

    Attributes:
        missed: jobs of which the watch has told nothing over two rounds.
    """

    def __init__(self, reconciler: Reconciler, queue: VisitQueue) -> None:
        """Ask for visits in a queue."""
        self.missed: set[JobKey] = set()
        self._reconciler = reconciler
        self._queue = queue
        self._told: dict[JobKey, int] = {}
        self._behind: dict[JobKey, int] = {}

    def told(self, key: JobKey, generation: int) -> None:
        """The watch told of a job."""
        self._told[key] = generation

    def told_gone(self, key: JobKey) -> None:
        """The watch told that a job is gone."""
        self._told.pop(key, None)

    async def run(self) -> None:
        """Make rounds until cancelled."""
        while True:
            try:
                self.compare(await self._reconciler.sweep())
            except API_TROUBLES as error:
                logger.warning("listing all jobs: %s: %s", type(error).__name__, error)
            await asyncio.sleep(ROUND_SECONDS)

    def compare(self, jobs: list[Document]) -> None:
        """Ask for visits to the jobs that the watch has not told of, or not of their newest generation."""
        behind = {}
        for job in jobs:
            metadata = job["metadata"]
            key, generation = (metadata["namespace"], metadata["name"]), metadata["generation"]
            if self._told.get(key, 0) < generation:
                behind[key] = generation
                self._queue.add(key)
        self.missed = {key for key, generation in self._behind.items() if behind.get(key, 0) >= generation}
        self._behind = behind
        metrics.MISSED_JOBS.set(len(self.missed))
        if self.missed:
            logger.error("the watch has told nothing of %d jobs in %.0f s", len(self.missed), ROUND_SECONDS)
