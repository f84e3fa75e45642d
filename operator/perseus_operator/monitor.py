"""Watches the running jobs in Prometheus, twice a second, and asks for a visit where a plan should change.

It decides nothing that a visit would not decide again from the same memory; it writes nothing. When Prometheus is
away, the last decisions hold for a while. Rounds are further apart where one takes long, so that they never take more
than half of the operator's time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from perseus_api.job import PerseusJobSpec
from perseus_api.plan import Plan

from perseus_operator import metrics
from perseus_operator.causes import Cause, Facts, Finding, ask_facts, find_cause
from perseus_operator.drift import DriftWatch, Work
from perseus_operator.ledger import Situation
from perseus_operator.measurements import PipelineVoice
from perseus_operator.planning import Stragglers, planned_seconds
from perseus_operator.prometheus import JobKey, JobReport, NoAnswer, Prometheus
from perseus_operator.sight import SIGHT_SECONDS, Sight
from perseus_operator.sources import Sources
from perseus_operator.stragglers import JobWatch, assess, full_seconds, training_restarted
from perseus_operator.transport import Connection

ROUND_SECONDS = 0.5
FIRST_LOOK_SECONDS = 8.0
CAUSE_SECONDS = 2.0
DRIFT_SECONDS = 20.0
RATES_SECONDS = 150.0  # rates over two minutes, and a scrape
HISTORY_SECONDS = 60.0
logger = logging.getLogger("perseus.operator")
__all__ = ["JobKey", "Monitor", "WatchedJob"]


@dataclass
class WatchedJob:
    """A job with a plan.

    Attributes:
        plan: in force.
        spec: of the job.
        watch: what is remembered between rounds.
        wanted: who straggles, by the last round.
        restarted: training began anew under this plan.
        sight: what is told of its agents.
        report: what its agents say.
        causes: by straggling pipeline.
        shown_seconds: monotonic time of the scrape that showed what the plan answers; None if it answers nothing.
        confirmed: ranks that hold the plan, as counted so far.
        missed: whether it was resumed and its history not yet read.
        drift: of its instructions from the profile.
    """

    plan: Plan
    spec: PerseusJobSpec
    watch: JobWatch
    wanted: Stragglers
    sight: Sight
    restarted: bool = False
    report: JobReport = field(default_factory=JobReport)
    causes: dict[int, Finding] = field(default_factory=dict)
    shown_seconds: float | None = None
    confirmed: int = 0
    missed: bool = False
    drift: DriftWatch = field(default_factory=DriftWatch)


class Monitor:
    """The rounds, and what they found.

    Attributes:
        answered: whether Prometheus answered lately; None without a Prometheus.
        failure: why it did not.
        has_rules: whether Prometheus has the recording rules; None until asked.
        sources: what else tells of stragglers.
    """

    def __init__(self, ask_for_visit: Callable[[JobKey], None]) -> None:
        """Ask for visits by a function."""
        self.answered: bool | None = None
        self.failure = ""
        self.has_rules: bool | None = None
        self.sources = Sources(lambda: {key: job.spec for key, job in self._jobs.items()})
        self._ask = ask_for_visit
        self._answered_seconds = float("-inf")
        self._jobs: dict[JobKey, WatchedJob] = {}
        self._reports: dict[JobKey, JobReport] = {}
        self._history: dict[JobKey, dict[int, list[float]]] | None = None
        self._history_asked = float("-inf")
        self._problems: dict[JobKey, object] = {}

    def find(self, key: JobKey) -> WatchedJob | None:
        """Return what is known of a job with a plan."""
        return self._jobs.get(key)

    def situation(self, key: JobKey) -> Situation:
        """Return what a job is doing, for its books."""
        job = self._jobs.get(key)
        if job is None or job.report.least_active < 1:
            return Situation.UNPLANNED
        return Situation.STRAGGLING if job.wanted.pipelines else Situation.PLANNED

    def resume(self, key: JobKey, plan: Plan, spec: PerseusJobSpec, age_seconds: float) -> WatchedJob:
        """Watch a job whose plan, of some age, was there before this operator."""
        now = time.monotonic()
        watch = JobWatch.resume(plan, spec.straggler, now, age_seconds)
        report = self._reports.get(key)
        job = self._jobs[key] = WatchedJob(
            plan, spec, watch, watch.stragglers, Sight(None, now), report=report or JobReport(), missed=True
        )
        if report is not None:
            # What the first look saw counts as seen: a restart tells nothing anew.
            _choose(job, report, now)
            job.sight.take(report, spec.parallelism.ranks, spec.parallelism.pipelines, now)
        return job

    def planned(
        self, key: JobKey, before: Plan | None, plan: Plan, spec: PerseusJobSpec, stragglers: Stragglers
    ) -> None:
        """Take note of a plan that was written."""
        now = time.monotonic()
        known = self._jobs.get(key)
        watch = known.watch if known else JobWatch()
        shown = _shown_seconds(known, stragglers) if known else None
        watch.changed(before, plan, stragglers, spec.straggler, now)
        sight = known.sight if known else Sight(JobReport(), now)
        job = self._jobs[key] = WatchedJob(plan, spec, watch, stragglers, sight, shown_seconds=shown)
        if known is not None:
            job.report, job.drift = known.report, known.drift
            job.causes = {index: each for index, each in known.causes.items() if index in stragglers.pipelines}

    def settled(self, key: JobKey, spec: PerseusJobSpec, stragglers: Stragglers) -> None:
        """Take note that a situation needs no other plan than the one in force."""
        job = self._jobs.get(key)
        if job is not None:
            job.watch.settle(stragglers, spec.straggler, time.monotonic())
            job.spec = spec
            job.causes = {index: each for index, each in job.causes.items() if index in stragglers.pipelines}

    def take_drift(self, key: JobKey) -> dict[Work, float]:
        """Hand over a drift that has become sure: the frontier is made anew for it."""
        job = self._jobs.get(key)
        if job is None or not job.drift.factors:
            return {}
        factors = job.drift.factors
        job.drift.corrected(time.monotonic())
        return factors

    def quieten(self, key: JobKey) -> None:
        """Believe no drift of a job for a while: what is measured shows what was before its profile."""
        job = self._jobs.get(key)
        if job is not None:
            job.drift.quiet_until = time.monotonic() + RATES_SECONDS

    def forget(self, key: JobKey) -> None:
        """Watch a job no more."""
        self._jobs.pop(key, None)
        self.sources.forget(key)
        self._problems.pop(key, None)

    async def look_first(self, connection: Connection) -> None:
        """Ask once before the first visit: an operator that starts anew then tells nothing that was told already."""
        try:
            await asyncio.wait_for(self._round(Prometheus(connection)), FIRST_LOOK_SECONDS)
        except TimeoutError:
            logger.warning("Prometheus takes more than %.0f s; the first visits do without it", FIRST_LOOK_SECONDS)

    async def run(self, connection: Connection) -> None:
        """Make rounds until cancelled."""
        prometheus = Prometheus(connection)
        cause_at = drift_at = 0.0
        while True:
            begin = time.monotonic()
            if self._jobs:
                with_causes = begin >= cause_at
                cause_at = begin + CAUSE_SECONDS if with_causes else cause_at
                answered = await self._round(prometheus)
                if with_causes and answered:
                    await self._find_causes(connection)
                if begin >= drift_at and answered:
                    drift_at = begin + DRIFT_SECONDS
                    await self._find_drifts(prometheus)
                metrics.ROUND_SECONDS.observe(time.monotonic() - begin)
            took = time.monotonic() - begin
            await asyncio.sleep(max(took, ROUND_SECONDS - took, 0.05))

    async def _round(self, prometheus: Prometheus) -> bool:
        """Ask, and look at every job; return whether Prometheus answered."""
        answered_before, answered = self.answered, False
        try:
            if self._history is None:
                self._history = await prometheus.history()
                self._history_asked = time.monotonic()
            reports = await prometheus.reports()
        except NoAnswer as error:
            reports = {}
            self.failure = str(error)
            if time.monotonic() - self._answered_seconds >= SIGHT_SECONDS:
                if self.answered is not False:
                    logger.warning("%s; plans stay as they are", error)
                self.answered = False
            metrics.STRAGGLER_ROUNDS.labels(outcome="failed").inc()
        else:
            answered = self.answered = True
            self.failure, self._answered_seconds = "", time.monotonic()
            self._reports = reports
            self.has_rules = prometheus.has_rules
            metrics.STRAGGLER_ROUNDS.labels(outcome="answered" if reports else "no_data").inc()
        if self.answered != answered_before:
            for key in self._jobs:
                self._ask(key)
        now = time.monotonic()
        if self._history and now - self._history_asked > HISTORY_SECONDS:
            self._history = {}
        for key, job in list(self._jobs.items()):
            self._look(key, job, reports.get(key), now)
        return answered

    def _look(self, key: JobKey, job: WatchedJob, report: JobReport | None, now: float) -> None:
        if report is not None:
            _choose(job, report, now)
            job.report = _with_last_words(report, job.report)
            self._count_confirmations(job, report, now)
        told_more = job.sight.take(report, job.spec.parallelism.ranks, job.spec.parallelism.pipelines, now)
        if job.missed and self._history is not None:
            _learn(job, self._history.get(key, {}))
        measured = report.pipelines if report is not None else {}
        policy = job.spec.straggler
        announced = self.sources.ratios(key, policy.hold_seconds, now)
        job.wanted = assess(job.watch, job.plan, measured, policy, announced, now)
        job.restarted = job.restarted or training_restarted(job.watch, job.plan, measured)
        problems = self.sources.problems(key)
        told_more = told_more or problems != self._problems.get(key, [])
        self._problems[key] = problems
        if job.wanted != job.watch.stragglers or job.restarted or told_more:
            self._ask(key)

    def _count_confirmations(self, job: WatchedJob, report: JobReport, now: float) -> None:
        if job.shown_seconds is None:
            return
        holding = sum(count for generation, count in report.accepted.items() if generation >= job.plan.generation)
        for _ in range(min(holding, job.spec.parallelism.ranks) - job.confirmed):
            metrics.CONFIRMATION_SECONDS.observe(now - job.shown_seconds)
        job.confirmed = max(job.confirmed, holding)
        if job.confirmed >= job.spec.parallelism.ranks:
            job.shown_seconds = None

    async def _find_causes(self, connection: Connection) -> None:
        """Ask why, once for all jobs, while anybody straggles."""
        straggling = {key: job for key, job in self._jobs.items() if job.watch.stragglers.pipelines}
        if not straggling:
            return
        facts: Facts = {}
        try:
            facts = await ask_facts(connection, bool(self.has_rules))
        except NoAnswer as error:
            metrics.SOURCE_ERRORS.labels(source="cause").inc()
            logger.warning("causes of stragglers: %s", error)
        for key, job in straggling.items():
            for index in job.watch.stragglers.pipelines[:64]:
                found = self._cause(key, job, index, facts)
                known = job.causes.get(index)
                if known is None or (found.cause is not Cause.UNKNOWN and _place(found) != _place(known)):
                    job.causes[index] = found
                    self._ask(key)

    async def _find_drifts(self, prometheus: Prometheus) -> None:
        """Ask whether the profiles still hold, once for all jobs."""
        try:
            drifts = await prometheus.drifts()
        except NoAnswer as error:
            metrics.SOURCE_ERRORS.labels(source="drift").inc()
            logger.warning("drift of instructions: %s", error)
            return
        now = time.monotonic()
        for key, job in self._jobs.items():
            if job.drift.look(drifts.get(key, {}), job.spec.straggler.drift_percent, now):
                self._ask(key)

    def _cause(self, key: JobKey, job: WatchedJob, index: int, facts: Facts) -> Finding:
        evidence = job.watch.evidence.get(index)
        if evidence is None or not evidence.slow:
            return Finding(Cause.ANNOUNCED if self.sources.announced(key, index) else Cause.QUERY)
        return find_cause(facts.get(key, {}).get(index, []), evidence.level)


def observed_ratio(job: WatchedJob, index: int) -> float:
    """Return measured (or announced) over planned time of a pipeline that straggles."""
    evidence = job.watch.evidence.get(index)
    if evidence is not None and evidence.slow:
        return evidence.level
    return job.watch.stragglers.deadline_seconds / full_seconds(job.plan)


def _place(found: Finding) -> tuple[object, ...]:
    return found.cause, found.pod, found.gpu


def _choose(job: WatchedJob, report: JobReport, now: float) -> None:
    """Let one pod speak for each pipeline."""
    for index, pods in report.pods.items():
        if index < len(job.plan.pipelines):
            voice = job.watch.voices.setdefault(index, PipelineVoice())
            chosen = voice.choose(pods, planned_seconds(job.plan, index), now)
            if chosen is not None:
                report.pipelines[index] = chosen


def _with_last_words(report: JobReport, before: JobReport) -> JobReport:
    """Return a report; with what the pipelines last said where they are silent, for the next plan's first iteration.

    The pods that speak for the pipelines may be out of reach while others are not.
    """
    if report.pipelines:
        return report
    return replace(report, pipelines=before.pipelines, answered_seconds=before.answered_seconds)


def _learn(job: WatchedJob, history: dict[int, list[float]]) -> None:
    """Take the noise of the minutes before from Prometheus."""
    job.missed = False
    for index, times in history.items():
        if index < len(job.plan.pipelines):
            planned = planned_seconds(job.plan, index)
            for before, after in pairwise(times):
                job.watch.noise.take(before / planned, after / planned)


def _shown_seconds(job: WatchedJob, stragglers: Stragglers) -> float | None:
    """When the scrape was made that shows what a plan for a new situation answers."""
    changed = set(stragglers.pipelines) ^ set(job.watch.stragglers.pipelines) or set(stragglers.pipelines)
    ages = [each.age_seconds for index, each in job.report.pipelines.items() if index in changed]
    if not ages or stragglers == job.watch.stragglers:
        return None
    return job.report.answered_seconds - min(ages)
