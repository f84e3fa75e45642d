"""One visit to a PerseusJob: look at everything, bring it to what it should be, tell the story in its status.

Level-based: a visit knows nothing of what changed, so that an operator killed at any write and started again comes to
    the same objects. The order of writes is that of need: finalizer, children, plan, status, events.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.errors import DocumentError
from perseus_api.frontier import Frontier
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import JobReference, Plan

from perseus_operator import metrics
from perseus_operator.children import Builder, Document, is_up_to_date
from perseus_operator.client import (
    CONFIG_MAP,
    EVENT,
    JOB,
    KINDS,
    PERSEUS_JOB,
    POD,
    Api,
    ApiRefusal,
)
from perseus_operator.conditions import Story
from perseus_operator.monitor import JobKey, Monitor
from perseus_operator.planning import (
    Stragglers,
    make_plan,
    planned_seconds,
    predicted_savings,
    same_clocks,
    stragglers_of,
)
from perseus_operator.profiles import LoadedProfile, ProfileProblem, load_profile
from perseus_operator.settings import Settings
from perseus_operator.status import event, plan_status, savings_status, straggler_status
from perseus_operator.stragglers import first_iteration

WAITING_SECONDS = 2.0
STEADY_SECONDS = 60.0
SAVINGS_SECONDS = 60.0
logger = logging.getLogger("perseus.operator")


@dataclass
class _Visit:
    """What one visit gathers for the status."""

    key: JobKey
    job: Document
    story: Story
    plan: Plan | None = None
    stragglers: Stragglers | None = None
    profile: LoadedProfile | None = None
    settled: bool = True


class Reconciler:
    """Visits jobs."""

    def __init__(self, api: Api, settings: Settings, monitor: Monitor) -> None:
        """Visit with a connection, the chart's settings and what the monitor knows."""
        self._api = api
        self._settings = settings
        self._monitor = monitor
        self._frontiers: dict[JobKey, tuple[str, Frontier | None]] = {}
        self._savings_at: dict[JobKey, float] = {}

    async def visit(self, key: JobKey) -> float | None:
        """Visit a job; return after how many seconds to come again, None if it is gone.

        Raises:
            ApiRefusal: the API server refused; the visit is to be repeated.
        """
        begin = time.monotonic()
        outcome = "failed"
        try:
            job = await self._api.get(PERSEUS_JOB, *key)
            if job is None:
                self.forget(key)
                outcome = "settled"
                return None
            if job["metadata"].get("deletionTimestamp"):
                await self._release(key, job)
                outcome = "settled"
                return None
            visit = _Visit(key, job, Story())
            await self._bring_about(visit)
            visit.story.finish()
            await self._tell(visit)
            outcome = "settled" if visit.settled else "waiting"
            return STEADY_SECONDS if visit.settled else WAITING_SECONDS
        finally:
            metrics.RECONCILES.labels(outcome=outcome).inc()
            metrics.RECONCILE_SECONDS.observe(time.monotonic() - begin)

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone."""
        watched = self._monitor.find(key)
        metrics.forget_job(*key, len(watched.plan.pipelines) if watched else 0)
        self._monitor.forget(key)
        self._frontiers.pop(key, None)
        self._savings_at.pop(key, None)

    async def sweep(self) -> None:
        """Delete plans whose jobs are gone: an operator that was away when a finalizer was forced off.

        Raises:
            ApiRefusal: the API server refused.
        """
        selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}"
        for plan in await self._api.find(CONFIG_MAP, self._settings.namespace, selector):
            labels = plan["metadata"].get("labels") or {}
            namespace, name = labels.get(names.LABEL_JOB_NAMESPACE, ""), labels.get(names.LABEL_JOB, "")
            job = await self._api.get(PERSEUS_JOB, namespace, name) if namespace and name else None
            if job is None or job["metadata"]["uid"] != labels.get(names.LABEL_JOB_UID):
                logger.info("plan %s belongs to no job", plan["metadata"]["name"])
                await self._api.delete(CONFIG_MAP, self._settings.namespace, plan["metadata"]["name"])

    async def _release(self, key: JobKey, job: Document) -> None:
        """The job is being deleted: withdraw its plan, then let it go. Its children are the garbage collector's."""
        finalizers = job["metadata"].get("finalizers") or []
        if names.FINALIZER in finalizers:
            await self._api.delete(CONFIG_MAP, self._settings.namespace, names.plan_config_map_name(*key))
            left = [each for each in finalizers if each != names.FINALIZER]
            version = job["metadata"]["resourceVersion"]
            patch = {"metadata": {"finalizers": left or None, "resourceVersion": version}}
            await self._api.merge(PERSEUS_JOB, *key, patch)
        self.forget(key)

    async def _bring_about(self, visit: _Visit) -> None:
        job, story = visit.job, visit.story
        try:
            spec = PerseusJobSpec.parse(job["spec"])
        except DocumentError as error:
            story.say(Condition.ACCEPTED, False, Reason.INVALID_SPEC, str(error))
            return
        await self._hold(job)
        builder = Builder(job, spec, self._settings)
        reason = Reason.SUSPENDED if spec.suspend else Reason.VALID
        words = "suspended: training is stopped and every clock given back" if spec.suspend else "the spec makes sense"
        story.say(Condition.ACCEPTED, True, reason, words)
        config_map = await self._api.get(CONFIG_MAP, builder.namespace, spec.profiling.profile_ref.name)
        try:
            visit.profile = await asyncio.to_thread(load_profile, spec, config_map)
        except ProfileProblem as problem:
            story.say(Condition.PROFILE_VALID, False, problem.reason, str(problem))
            visit.settled = False
            return
        profile = visit.profile.profile
        clocks = len({each.frequency_megahertz for rows in profile.measurements.values() for each in rows})
        words = f"{profile.stages} stages at {clocks} clocks, {profile.header.gpu_model or 'unnamed GPU'}"
        story.say(Condition.PROFILE_VALID, True, Reason.PROFILE_LOADED, words)
        frontier = await self._frontier(visit, builder, visit.profile.checksum)
        running = await self._workload(visit, builder, spec)
        if frontier is not None:
            await self._plan(visit, builder, spec, frontier, running)

    async def _hold(self, job: Document) -> None:
        finalizers = job["metadata"].get("finalizers") or []
        if names.FINALIZER not in finalizers:
            patch = {
                "metadata": {
                    "finalizers": [*finalizers, names.FINALIZER],
                    "resourceVersion": job["metadata"]["resourceVersion"],
                }
            }
            await self._api.merge(PERSEUS_JOB, job["metadata"]["namespace"], job["metadata"]["name"], patch)

    async def _frontier(self, visit: _Visit, builder: Builder, checksum: str) -> Frontier | None:
        """Return the frontier of this profile, or have it made."""
        wanted = builder.frontier_config_map()
        present = await self._ensure(wanted)
        frontier = await self._decoded(visit.key, present)
        if frontier is not None and frontier.profile_checksum == checksum:
            words = (
                f"{len(frontier.plans)} plans from {frontier.plans[0].iteration_seconds:.3f} s to "
                f"{frontier.plans[-1].iteration_seconds:.3f} s"
            )
            visit.story.say(Condition.FRONTIER_READY, True, Reason.OPTIMISED, words)
            return frontier
        visit.settled = False
        for document in builder.optimiser_access():
            await self._ensure(document)
        optimiser = await self._ensure(builder.optimiser_job(checksum))
        failed = _job_condition(optimiser, "Failed")
        if failed is not None:
            words = await self._last_words(builder.namespace, optimiser["metadata"]["name"]) or failed
            visit.story.say(Condition.FRONTIER_READY, False, Reason.OPTIMISATION_FAILED, words)
        else:
            words = f"Job {optimiser['metadata']['name']} computes the frontier"
            visit.story.say(Condition.FRONTIER_READY, False, Reason.OPTIMISING, words)
        return None

    async def _decoded(self, key: JobKey, config_map: Document) -> Frontier | None:
        version = config_map["metadata"]["resourceVersion"]
        known = self._frontiers.get(key)
        if known is not None and known[0] == version:
            return known[1]
        encoded = (config_map.get("binaryData") or {}).get(names.FRONTIER_KEY)
        frontier = None
        if encoded:
            try:
                frontier = await asyncio.to_thread(Frontier.decode, base64.b64decode(encoded, validate=True))
            except (DocumentError, binascii.Error) as error:
                logger.warning("%s/%s: %s; it is made anew", *key, error)
        self._frontiers[key] = (version, frontier)
        return frontier

    async def _workload(self, visit: _Visit, builder: Builder, spec: PerseusJobSpec) -> bool:
        """Have the training pods run; return whether they are wanted and not finished."""
        ranks = spec.parallelism.ranks
        try:
            await self._ensure(builder.service())
            job = await self._ensure(builder.workload())
        except ApiRefusal as refusal:
            if not refusal.is_final:
                raise
            visit.story.say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, f"spec.template: {refusal}")
            return False
        if _job_condition(job, "Complete") is not None:
            visit.story.say(Condition.WORKLOAD_READY, True, Reason.TRAINING_FINISHED, f"all {ranks} ranks finished")
            return False
        failed = _job_condition(job, "Failed")
        if failed is not None:
            visit.story.say(Condition.WORKLOAD_READY, False, Reason.TRAINING_FAILED, failed)
            return False
        ready = int((job.get("status") or {}).get("ready") or 0)
        if spec.suspend:
            visit.story.say(Condition.WORKLOAD_READY, False, Reason.SUSPENDED, "spec.suspend is true")
        elif ready < ranks:
            visit.settled = False
            visit.story.say(
                Condition.WORKLOAD_READY, False, Reason.PODS_STARTING, f"{ready} of {ranks} training pods are ready"
            )
        else:
            visit.story.say(Condition.WORKLOAD_READY, True, Reason.PODS_RUNNING, f"all {ranks} training pods are ready")
        return not spec.suspend

    async def _plan(
        self, visit: _Visit, builder: Builder, spec: PerseusJobSpec, frontier: Frontier, running: bool
    ) -> None:
        name = names.plan_config_map_name(*visit.key)
        config_map = await self._api.get(CONFIG_MAP, self._settings.namespace, name)
        if not running:
            if config_map is not None:
                await self._api.delete(CONFIG_MAP, self._settings.namespace, name)
            self._monitor.forget(visit.key)
            visit.story.say(Condition.PLAN_APPLIED, False, Reason.WAITING, "training does not run: no clock is locked")
            return
        before = _decoded_plan(config_map)
        reference = JobReference(namespace=builder.namespace, name=builder.name, uid=builder.uid)
        if before is not None and before.job != reference:
            before = None
        watched = self._monitor.find(visit.key)
        if before is not None and (watched is None or watched.plan != before):
            watched = self._monitor.resume(visit.key, before, spec)
        stragglers = watched.wanted if watched else Stragglers()
        restarted = watched is not None and watched.restarted
        generation = before.generation if before else self._last_generation(visit.job, config_map)
        wanted = make_plan(reference, spec, frontier, stragglers, generation + 1, 0)
        if before is not None and same_clocks(before, wanted) and not restarted:
            plan = before
            if watched is not None:
                watched.watch.stragglers = stragglers
                watched.spec = spec
        else:
            if before is None:
                first, why = spec.accounting.baseline_iterations + 1, "initial"
            elif restarted:
                first, why = 1, "restart"
            else:
                measured = watched.report.pipelines if watched else {}
                first = first_iteration(before, measured, time.time())
                why = "straggler" if stragglers.pipelines else "recovery"
                if stragglers == stragglers_of(before):
                    why = "objective"
            plan = wanted.model_copy(update={"first_iteration": first})
            encoded = base64.b64encode(plan.encode()).decode()
            await self._api.apply(builder.plan_config_map(encoded))
            metrics.REPLANS.labels(reason=why).inc()
            logger.info("%s/%s: plan %d (%s) from iteration %d", *visit.key, plan.generation, why, first)
            self._monitor.planned(visit.key, before, plan, spec, stragglers)
        visit.plan, visit.stragglers = plan, stragglers
        self._export(visit.key, plan, stragglers)
        self._tell_applied(visit, spec, plan)
        self._tell_stragglers(visit, spec, plan, stragglers)

    def _last_generation(self, job: Document, config_map: Document | None) -> int:
        """Generations only grow, also over a withdrawn or damaged plan: the status remembers."""
        told = ((job.get("status") or {}).get("plan") or {}).get("generation", 0)
        kept = _decoded_plan(config_map)
        return max(int(told), kept.generation if kept else 0)

    def _export(self, key: JobKey, plan: Plan, stragglers: Stragglers) -> None:
        metrics.PLAN_GENERATION.labels(*key).set(plan.generation)
        metrics.PREDICTED_SAVINGS.labels(*key).set(predicted_savings(plan, stragglers))
        for pipeline in range(len(plan.pipelines)):
            metrics.PLANNED_SECONDS.labels(*key, str(pipeline)).set(planned_seconds(plan, pipeline))
        slowest = plan.variants[plan.pipelines[stragglers.pipelines[0]]] if stragglers.pipelines else None
        ratio = stragglers.deadline_seconds / slowest.iteration_seconds if slowest else 1.0
        metrics.SLOWDOWN_RATIO.labels(*key).set(ratio)

    def _tell_applied(self, visit: _Visit, spec: PerseusJobSpec, plan: Plan) -> None:
        watched = self._monitor.find(visit.key)
        report = watched.report if watched else None
        ranks = spec.parallelism.ranks
        if self._monitor.answered is not True or report is None or report.ranks < ranks:
            seen = report.ranks if report else 0
            reason = Reason.WAITING_FOR_AGENTS if self._monitor.answered else Reason.NO_MEASUREMENTS
            words = f"agents of {seen} of {ranks} ranks are seen in Prometheus"
            if self._monitor.answered is None:
                words = "no Prometheus is configured (prometheus.url in the chart): agents are not seen"
            elif self._monitor.answered is False:
                words = "Prometheus does not answer: agents are not seen"
            visit.story.say(Condition.PLAN_APPLIED, None, reason, words)
        elif report.accepted < plan.generation:
            words = f"generation {plan.generation} is on its way to the agents"
            visit.story.say(Condition.PLAN_APPLIED, False, Reason.WAITING_FOR_AGENTS, words)
        elif report.active < plan.generation:
            reason = Reason.WAITING_FOR_AGENTS if report.active else Reason.MEASURING_BASELINE
            words = f"generation {plan.generation} holds from iteration {plan.first_iteration}"
            visit.story.say(Condition.PLAN_APPLIED, False, reason, words)
        else:
            words = f"all {ranks} ranks run generation {plan.generation}"
            visit.story.say(Condition.PLAN_APPLIED, True, Reason.ALL_AGENTS, words)

    def _tell_stragglers(self, visit: _Visit, spec: PerseusJobSpec, plan: Plan, stragglers: Stragglers) -> None:
        say = visit.story.say
        if stragglers.pipelines:
            slow = ", ".join(str(index) for index in stragglers.pipelines[:10])
            words = f"pipeline {slow} is slow: the others take {stragglers.deadline_seconds:.3f} s for an iteration"
            say(Condition.STRAGGLING, True, Reason.PIPELINE_SLOW, words)
        elif not spec.straggler.enabled:
            say(Condition.STRAGGLING, False, Reason.STRAGGLERS_IGNORED, "spec.straggler.enabled is false")
        elif len(plan.pipelines) < 2:
            say(Condition.STRAGGLING, False, Reason.NO_STRAGGLER, "one pipeline alone has nobody to wait for")
        elif self._monitor.answered is not True:
            say(Condition.STRAGGLING, None, Reason.NO_MEASUREMENTS, "pipeline times are not seen in Prometheus")
        else:
            say(Condition.STRAGGLING, False, Reason.NO_STRAGGLER, "all pipelines keep their time")

    async def _ensure(self, wanted: Document) -> Document:
        """Return a child as it is, written if it was not as it should be."""
        metadata = wanted["metadata"]
        present = await self._api.get(KINDS[wanted["kind"]], metadata["namespace"], metadata["name"])
        if is_up_to_date(wanted, present) and present is not None:
            return present
        if present is not None and wanted["kind"] == JOB.name and not _owned_by_same(wanted, present):
            raise ApiRefusal(
                409, "AlreadyExists", f"Job {metadata['name']} exists already and is not this PerseusJob's: rename one"
            )
        return await self._api.apply(wanted)

    async def _last_words(self, namespace: str, job: str) -> str:
        for pod in await self._api.find(POD, namespace, f"batch.kubernetes.io/job-name={job}"):
            for container in (pod.get("status") or {}).get("containerStatuses") or []:
                message = ((container.get("state") or {}).get("terminated") or {}).get("message")
                if message:
                    return str(message).strip().splitlines()[-1]
        return ""

    async def _tell(self, visit: _Visit) -> None:
        """Write the status if it differs, then the events."""
        job = visit.job
        before: Document = job.get("status") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        generation = job["metadata"]["generation"]
        known = before.get("conditions") or []
        status: Document = {
            "observedGeneration": generation,
            "conditions": visit.story.documents(known, generation, now),
        }
        if visit.profile is not None:
            reference = job["spec"]["profiling"]["profileRef"]["name"]
            status["profile"] = {"name": reference, "checksum": visit.profile.checksum}
        if visit.plan is not None and visit.stragglers is not None:
            status["plan"] = plan_status(visit.plan, visit.stragglers)
            if visit.stragglers.pipelines:
                status["stragglers"] = straggler_status(visit.plan, visit.stragglers)
        elif "plan" in before:
            status["plan"] = before["plan"]
        savings = self._savings(visit.key, before.get("savings"))
        if savings is not None:
            status["savings"] = savings
        if status == before:
            return
        metadata = {"name": job["metadata"]["name"], "namespace": job["metadata"]["namespace"]}
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "status": status}
        await self._api.apply(document, "status")
        await self._tell_events(visit, known, now)

    def _savings(self, key: JobKey, before: Document | None) -> Document | None:
        energy = self._monitor.energies.get(key)
        if energy is None or energy.energy <= 0:
            return before
        if before is not None and time.monotonic() < self._savings_at.get(key, 0.0) + SAVINGS_SECONDS:
            return before
        self._savings_at[key] = time.monotonic()
        return savings_status(energy) or before

    async def _tell_events(self, visit: _Visit, known: list[Document], now: str) -> None:
        earlier = {each["type"]: (each["status"], each["reason"]) for each in known}
        for condition, (status, reason, message) in visit.story.told.items():
            if (
                condition is Condition.READY
                or status == "Unknown"
                or earlier.get(condition.value) == (status, reason.value)
            ):
                continue
            try:
                await self._api.create(EVENT, event(visit.job, condition, reason, message, now))
            except ApiRefusal as refusal:
                # Whatever becomes of an event, the status has told it already.
                logger.info("event not written: %s", refusal)


def _decoded_plan(config_map: Document | None) -> Plan | None:
    if config_map is None:
        return None
    try:
        return Plan.decode(
            base64.b64decode((config_map.get("binaryData") or {}).get(names.PLAN_KEY, ""), validate=True)
        )
    except (DocumentError, binascii.Error):
        return None


def _job_condition(job: Document, wanted: str) -> str | None:
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("type") == wanted and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason") or wanted)
    return None


def _owned_by_same(wanted: Document, present: Document) -> bool:
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    return any(owner.get("uid") == uid for owner in present["metadata"].get("ownerReferences") or [])
