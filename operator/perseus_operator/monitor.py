"""Watches the running jobs in Prometheus, twice a second, and asks for a visit where a plan should change.

It decides nothing that a visit would not decide again from the same memory; it writes nothing. When Prometheus is
away, the last decisions hold for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from perseus_api.job import PerseusJobSpec
from perseus_api.plan import Plan

from perseus_operator import metrics
from perseus_operator.ledger import Situation
from perseus_operator.planning import Stragglers
from perseus_operator.prometheus import JobReport, NoAnswer, Prometheus
from perseus_operator.stragglers import JobWatch, assess, training_restarted

JobKey = tuple[str, str]
ROUND_SECONDS = 0.5
logger = logging.getLogger("perseus.operator")


@dataclass
class WatchedJob:
    """A job with a plan.

    Attributes:
        plan: in force.
        spec: of the job.
        watch: what is remembered between rounds.
        wanted: who straggles, by the last round.
        restarted: training began anew under this plan.
        report: what its agents say.
    """

    plan: Plan
    spec: PerseusJobSpec
    watch: JobWatch
    wanted: Stragglers
    restarted: bool = False
    report: JobReport = field(default_factory=JobReport)


class Monitor:
    """The rounds, and what they found.

    Attributes:
        answered: whether Prometheus answered in the last round; None without a Prometheus.
    """

    def __init__(self, ask_for_visit: Callable[[JobKey], None]) -> None:
        """Ask for visits by a function."""
        self.answered: bool | None = None
        self._ask = ask_for_visit
        self._jobs: dict[JobKey, WatchedJob] = {}

    def find(self, key: JobKey) -> WatchedJob | None:
        """Return what is known of a job with a plan."""
        return self._jobs.get(key)

    def situation(self, key: JobKey) -> Situation:
        """Return what a job is doing, for its books."""
        job = self._jobs.get(key)
        if job is None or job.report.active < 1:
            return Situation.UNPLANNED
        return Situation.STRAGGLING if job.wanted.pipelines else Situation.PLANNED

    def resume(self, key: JobKey, plan: Plan, spec: PerseusJobSpec) -> WatchedJob:
        """Watch a job whose plan was there before this operator."""
        watch = JobWatch.resume(plan, time.monotonic())
        job = self._jobs[key] = WatchedJob(plan, spec, watch, watch.stragglers)
        return job

    def planned(
        self, key: JobKey, before: Plan | None, plan: Plan, spec: PerseusJobSpec, stragglers: Stragglers
    ) -> None:
        """Take note of a plan that was written."""
        known = self._jobs.get(key)
        watch = known.watch if known else JobWatch(seen_seconds=time.monotonic())
        watch.changed(before, plan, stragglers)
        report = known.report if known else JobReport()
        self._jobs[key] = WatchedJob(plan, spec, watch, stragglers, report=report)

    def forget(self, key: JobKey) -> None:
        """Watch a job no more."""
        self._jobs.pop(key, None)

    async def run(self, prometheus: Prometheus) -> None:
        """Make rounds until cancelled."""
        while True:
            begin = time.monotonic()
            if self._jobs:
                await self._round(prometheus)
            await asyncio.sleep(max(0.05, ROUND_SECONDS - (time.monotonic() - begin)))

    async def _round(self, prometheus: Prometheus) -> None:
        try:
            reports = await prometheus.reports()
        except NoAnswer as error:
            if self.answered is not False:
                logger.warning("%s; plans stay as they are", error)
            self.answered = False
            reports = {}
            metrics.STRAGGLER_ROUNDS.labels(outcome="failed").inc()
        else:
            self.answered = True
            metrics.STRAGGLER_ROUNDS.labels(outcome="answered" if reports else "no_data").inc()
        now, wall = time.monotonic(), time.time()
        for key, job in list(self._jobs.items()):
            self._look(key, job, reports.get(key), now, wall)

    def _look(self, key: JobKey, job: WatchedJob, report: JobReport | None, now: float, wall: float) -> None:
        seen = report or JobReport()
        told_more = (seen.accepted, seen.active, seen.ranks) != (
            job.report.accepted,
            job.report.active,
            job.report.ranks,
        )
        if report is not None:
            job.report = report
        job.wanted = assess(job.watch, job.plan, seen.pipelines, job.spec.straggler, now, wall)
        job.restarted = job.restarted or training_restarted(job.watch, job.plan, seen.pipelines)
        if job.wanted != job.watch.stragglers or job.restarted or (report is not None and told_more):
            self._ask(key)
