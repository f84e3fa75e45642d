"""The step that brings the profile: given, measured before for this job, from the cache, or measured now.

Where it is measured, this step pushes the rounds of the sweep and reads the agents; what comes next is decided in
`profiling.sweeping`. Everything that it needs to go on after a restart lies in the plan and the profile.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from enum import Enum, auto
from importlib.metadata import PackageNotFoundError, version

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.job import CacheUse, DriftResponse, PerseusJobSpec, ProfilingMode, RunMode, SweepType
from perseus_api.measurements import RankReport
from perseus_api.plan import JobReference, Plan

from perseus_operator.children import Builder, Document, is_owned_by
from perseus_operator.client import CONFIG_MAP, Api
from perseus_operator.measurements import NOTICE_SECONDS
from perseus_operator.monitor import JobKey
from perseus_operator.profiles import LoadedProfile, ProfileProblem, ProfileReader, Source, load_profile
from perseus_operator.profiling.agents import Agents, image_of, ranks_of_pipeline
from perseus_operator.profiling.cache import cached_name, cached_profile, fingerprint, subject_of
from perseus_operator.profiling.document import Subject, profile_csv, profile_header
from perseus_operator.profiling.sweeping import (
    Finished,
    Hopeless,
    Push,
    SweepMemory,
    SweepSettings,
    Wait,
    decide,
    next_iteration,
    sweep_plan,
)
from perseus_operator.settings import Settings
from perseus_operator.steps.plan import decoded_plan, last_generation
from perseus_operator.visit import Visit

ANNOTATION_SOURCE = f"{names.GROUP}/source"
ANNOTATION_ITERATIONS = f"{names.GROUP}/sweep-iterations"
ANNOTATION_SLOWDOWN = f"{names.GROUP}/sweep-slowdown-permille"
ANNOTATION_REPLACES = f"{names.GROUP}/replaces-profile"
# Windows that begin further ahead than this wait for iterations that a restarted training will not reach soon.
FAR_AHEAD_ITERATIONS = 50
UNBOUNDED = 1e3  # Pods that run for the profile alone may be as slow as they are.
logger = logging.getLogger("perseus.operator")


class Outcome(Enum):
    """What one step of measuring has come to."""

    GOES_ON = auto()
    KEPT = auto()  # the profile is written
    HOPELESS = auto()  # none will be


class ProfileStep:
    """Brings profiles, and remembers the sweeps that go on."""

    def __init__(self, api: Api, settings: Settings, agents: Agents) -> None:
        """Work over a connection, with the agents."""
        self._api = api
        self._settings = settings
        self._agents = agents
        self._reader = ProfileReader()
        self._memories: dict[JobKey, tuple[str, SweepMemory]] = {}

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone."""
        self._memories.pop(key, None)

    async def find(self, builder: Builder, spec: PerseusJobSpec) -> LoadedProfile | None:
        """Return the profile that is given, or the one that was measured for this job; None if one is to be measured.

        Raises:
            ProfileProblem: it cannot be used.
            ApiRefusal: the API server refused.
        """
        given = spec.profiling.profile_ref
        if given is not None:
            config_map = await self._api.get(CONFIG_MAP, builder.namespace, given.name)
            if config_map is None:
                return load_profile(spec, given.name, None)
            loaded = await self._reader.read(spec, config_map, Source.GIVEN)
            return await self._measured_instead(builder, spec, loaded) or loaded
        name = names.profile_config_map_name(builder.name)
        own = await self._api.get(CONFIG_MAP, builder.namespace, name)
        if own is None:
            return None
        if not is_owned_by(own, builder.uid):
            raise ProfileProblem(
                Reason.PROFILE_INVALID,
                f"ConfigMap {name} exists and was not measured for this job; name it in "
                "spec.profiling.profileRef.name to use it, or rename it to have a profile measured",
            )
        return await self._own(spec, own)

    async def _measured_instead(
        self, builder: Builder, spec: PerseusJobSpec, given: LoadedProfile
    ) -> LoadedProfile | None:
        """Return the profile that was measured when this given one had drifted, if there is one."""
        if spec.profiling.on_drift is not DriftResponse.MEASURE:
            return None
        own = await self._api.get(CONFIG_MAP, builder.namespace, names.profile_config_map_name(builder.name))
        if own is None or not is_owned_by(own, builder.uid):
            return None
        found = await self._own(spec, own)
        return found if found.replaces == given.checksum else None

    async def _own(self, spec: PerseusJobSpec, own: Document) -> LoadedProfile:
        facts = own["metadata"].get("annotations") or {}
        source = Source.CACHED if facts.get(ANNOTATION_SOURCE) == Source.CACHED.value else Source.MEASURED
        found = await self._reader.read(spec, own, source)
        return LoadedProfile(
            found.name, found.profile, found.checksum, found.source,
            _integer(facts.get(ANNOTATION_ITERATIONS)), _integer(facts.get(ANNOTATION_SLOWDOWN)),
            str(facts.get(ANNOTATION_REPLACES) or ""),
        )  # fmt: skip

    async def measure(
        self, visit: Visit, builder: Builder, spec: PerseusJobSpec, pods: list[Document], running: bool
    ) -> Outcome:
        """Go one step on in measuring, or in measuring anew where the visit has a profile; return what it came to.

        Args:
            visit: gathers what is told; its profile, if it has one, has drifted.
            builder: of the job's children.
            spec: of the job.
            pods: that train, or that train for the profile alone.
            running: whether these are wanted and not finished.

        Raises:
            ApiRefusal: the API server refused.
        """
        visit.settled = False
        visit.measuring = running
        if not running:
            await self.withdraw(visit.key)
            visit.story.say(
                Condition.PROFILE_VALID, False, Reason.PROFILING, "training does not run: nothing to measure"
            )
            return Outcome.GOES_ON
        ranks = ranks_of_pipeline(spec)
        reports = await self._agents.reports(visit.job, ranks, pods)
        subject = _subject(visit.job, spec, builder, reports, pods)
        # A cached one is as old as the one that has drifted.
        if visit.profile is None and subject is not None and await self._reuse(builder, spec, subject):
            visit.story.say(
                Condition.PROFILE_VALID, False, Reason.PROFILING, "found a profile of the same in the cache"
            )
            return Outcome.KEPT
        if spec.mode is RunMode.DRY_RUN and spec.profiling.mode is ProfilingMode.IN_JOB:
            words = (
                "spec.mode DryRun locks no clocks of the training, so nothing can be measured in it: give a profile in "
                "spec.profiling.profileRef, or set spec.profiling.mode to Pods"
            )
            await self.withdraw(visit.key)
            visit.story.say(Condition.PROFILE_VALID, False, Reason.PROFILE_MISSING, words)
            return Outcome.HOPELESS
        return await self._sweep(visit, builder, spec, reports, subject)

    async def withdraw(self, key: JobKey) -> None:
        """Take a sweep's plan away: every clock is given back.

        Raises:
            ApiRefusal: the API server refused.
        """
        name = names.plan_config_map_name(*key)
        if await self._api.get(CONFIG_MAP, self._settings.namespace, name) is not None:
            await self._api.delete(CONFIG_MAP, self._settings.namespace, name)

    async def _sweep(
        self, visit: Visit, builder: Builder, spec: PerseusJobSpec, reports: list[RankReport],
        subject: Subject | None,
    ) -> Outcome:  # fmt: skip
        reference = JobReference(namespace=builder.namespace, name=builder.name, uid=builder.uid)
        config_map = await self._api.get(
            CONFIG_MAP, self._settings.namespace, names.plan_config_map_name(builder.namespace, builder.name)
        )
        before = decoded_plan(config_map)
        generation = last_generation(visit.job, config_map)
        running = before if before is not None and before.job == reference and before.sweep is not None else None
        measurement = running.sweep.measurement if running and running.sweep else f"{builder.uid[:36]}-{generation + 1}"
        if running is not None and _is_far_ahead(running, reports, spec):
            running = None
        memory = self._memory(visit.key, measurement)
        on_pods = _runs_on_pods(visit, spec)
        bound = UNBOUNDED if on_pods else spec.profiling.max_slowdown_percent / 100
        settings = SweepSettings(bound=bound, adaptive=spec.profiling.sweep is SweepType.ADAPTIVE)
        pipeline = builder.pipeline
        step = await asyncio.to_thread(decide, pipeline, reports, measurement, running, settings, memory)
        if isinstance(step, Finished):
            return await self._keep(visit, builder, spec, step, subject)
        reason = Reason.PROFILING_FAILED if isinstance(step, Hopeless) else Reason.PROFILING
        if isinstance(step, Wait) and step.is_astray:
            reason = Reason.PLAN_NOT_FOLLOWED
        visit.story.say(Condition.PROFILE_VALID, False, reason, step.message)
        if isinstance(step, Hopeless):
            await self.withdraw(visit.key)
            return Outcome.HOPELESS
        if isinstance(step, Push):
            first = next_iteration(reports, time.time(), NOTICE_SECONDS)
            if before is None:
                first = max(first, spec.accounting.baseline_iterations + 1)
            pipelines = 1 if on_pods else spec.parallelism.pipelines
            plan = sweep_plan(reference, pipeline, step, pipelines, measurement, generation + 1, first)
            await self._api.apply(builder.plan_config_map(base64.b64encode(plan.encode()).decode()))
            logger.info("%s/%s: sweep %d from iteration %d: %s", *visit.key, plan.generation, first, step.message)
        return Outcome.GOES_ON

    async def _keep(
        self, visit: Visit, builder: Builder, spec: PerseusJobSpec, step: Finished, subject: Subject | None
    ) -> Outcome:
        header = profile_header(step.measured, subject, _version()) if subject is not None else None
        if header is None or subject is None:
            words = (
                "the power of a GPU that waits in communication could not be measured: give a profile in "
                "spec.profiling.profileRef"
            )
            await self.withdraw(visit.key)
            visit.story.say(Condition.PROFILE_VALID, False, Reason.PROFILING_FAILED, words)
            return Outcome.HOPELESS
        csv_text, header_text = profile_csv(step.measured), header.model_dump_json(by_alias=True, exclude_defaults=True)
        facts = {
            ANNOTATION_SOURCE: Source.MEASURED.value,
            ANNOTATION_ITERATIONS: str(step.iterations),
            ANNOTATION_SLOWDOWN: str(round(1000 * step.slowdown)),
        }
        drifted = visit.profile
        if drifted is not None and (drifted.replaces or drifted.source is Source.GIVEN):
            facts[ANNOTATION_REPLACES] = drifted.replaces or drifted.checksum
        mark = fingerprint(subject)
        if spec.profiling.cache is CacheUse.USE and mark:
            await self._api.apply(cached_profile(builder.namespace, mark, subject, csv_text, header_text))
        await self._api.apply(builder.profile_config_map(csv_text, header_text, facts))
        if _runs_on_pods(visit, spec):
            await self.withdraw(visit.key)  # The pods that train afterwards count iterations from 0 again.
        words = f"measured {len(step.measured.rows)} clocks in {step.iterations} iterations"
        visit.story.say(Condition.PROFILE_VALID, False, Reason.PROFILING, words)
        logger.info("%s/%s: %s, %.1f %% longer than unlocked", *visit.key, words, 100 * step.slowdown)
        return Outcome.KEPT

    async def _reuse(self, builder: Builder, spec: PerseusJobSpec, subject: Subject) -> bool:
        """Copy a cached profile of the same circumstances, if there is one; every one of them is compared again."""
        mark = fingerprint(subject)
        if spec.profiling.cache is not CacheUse.USE or not mark:
            return False
        name = cached_name(mark)
        config_map = await self._api.get(CONFIG_MAP, builder.namespace, name)
        if config_map is None or (config_map["metadata"].get("labels") or {}).get(names.LABEL_FINGERPRINT) != mark:
            return False
        try:
            found = await asyncio.to_thread(load_profile, spec, name, config_map, Source.CACHED)
        except ProfileProblem as problem:
            logger.warning("cached profile %s is not used: %s", name, problem)
            return False
        if subject_of(found.profile.header) != subject:
            logger.warning("cached profile %s is not used: its header names other circumstances", name)
            return False
        data = config_map["data"]
        texts = data[names.PROFILE_CSV_KEY], data[names.PROFILE_HEADER_KEY]
        await self._api.apply(builder.profile_config_map(*texts, {ANNOTATION_SOURCE: Source.CACHED.value}))
        return True

    def _memory(self, key: JobKey, measurement: str) -> SweepMemory:
        known = self._memories.get(key)
        if known is None or known[0] != measurement:
            known = self._memories[key] = (measurement, SweepMemory())
        return known[1]


def _runs_on_pods(visit: Visit, spec: PerseusJobSpec) -> bool:
    """Whether pods run for the measurement alone; what has drifted is measured where it drifts, in the job."""
    return spec.profiling.mode is ProfilingMode.PODS and visit.profile is None


def _subject(
    job: Document, spec: PerseusJobSpec, builder: Builder, reports: list[RankReport], pods: list[Document]
) -> Subject | None:
    """Return what is measured; None until the GPU of every stage is known, and where replicas of a stage differ."""
    models: dict[int, set[str]] = {}
    for report in reports:
        models.setdefault(report.stage, set()).add(report.gpu_model)
    drivers = {report.driver for report in reports}
    stages = range(spec.parallelism.stages)
    if any(len(models.get(stage, ())) != 1 for stage in stages) or len(drivers) != 1:
        return None
    return Subject(
        models=tuple(next(iter(models[stage])) for stage in stages),
        driver=drivers.pop(),
        tensor_parallel=spec.parallelism.tensor_parallel,
        pipelines=spec.parallelism.pipelines,
        microbatches=builder.pipeline.microbatches,
        schedule=builder.schedule,
        model=(job["metadata"].get("labels") or {}).get(names.LABEL_MODEL, ""),
        image=image_of(pods),
        chunks=builder.pipeline.chunks,
    )


def _is_far_ahead(running: Plan, reports: list[RankReport], spec: PerseusJobSpec) -> bool:
    """Whether training began anew, so that a round's iterations are far away again."""
    reached = max((report.iteration for report in reports if report.connected), default=running.first_iteration)
    ahead = running.first_iteration - max(reached, spec.accounting.baseline_iterations)
    return ahead > FAR_AHEAD_ITERATIONS


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() and len(text) < 10 else None


def _version() -> str:
    try:
        return version("perseus-operator")
    except PackageNotFoundError:
        return "unknown"
