"""One visit to a PerseusJob: look at everything, bring it to what it should be, tell the story in its status.

Level-based: a visit knows nothing of what changed, so that an operator killed at any write and started again comes to
the same objects. The order of writes is that of need: finalizer, children, plan, status, events. Where the plan needs
no look at the training pods (none was made yet, or a straggler is answered) it comes before them, and while others wait
for theirs the visit ends there: a thousand new jobs, or stragglers, get their plans first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.errors import DocumentError
from perseus_api.job import PerseusJobSpec, ProfilingMode, RunMode
from perseus_api.schedules import JobSchedule

from perseus_operator import logs, metrics
from perseus_operator.accounts import Accounts
from perseus_operator.children import Builder, Document
from perseus_operator.client import CONFIG_MAP, PERSEUS_JOB, Api
from perseus_operator.conditions import Story
from perseus_operator.monitor import JobKey, Monitor
from perseus_operator.profiles import LoadedProfile, ProfileProblem, check_orders
from perseus_operator.profiling.agents import Agents, trainer_pods
from perseus_operator.scope import Scope
from perseus_operator.settings import Settings
from perseus_operator.steps.account import AccountStep
from perseus_operator.steps.drift import Drift, DriftStep
from perseus_operator.steps.frontier import FrontierStep
from perseus_operator.steps.order import OrderStep
from perseus_operator.steps.plan import PlanStep
from perseus_operator.steps.pods import ProfilingPods
from perseus_operator.steps.profile import Outcome, ProfileStep
from perseus_operator.steps.reference import look_at_workload
from perseus_operator.steps.status import StatusStep
from perseus_operator.steps.telling import tell_profile
from perseus_operator.steps.workload import bring_about_workload
from perseus_operator.tracing import span
from perseus_operator.visit import Visit

WAITING_SECONDS, LONGEST_WAITING_SECONDS = 2.0, 30.0
STEADY_SECONDS = 60.0
REFERENCE_SECONDS = 15.0  # nobody tells of a workload that is not ours
logger = logging.getLogger("perseus.operator")


class Reconciler:
    """Visits jobs."""

    def __init__(
        self, api: Api, settings: Settings, scope: Scope, monitor: Monitor, accounts: Accounts, agents: Agents,
        hurries: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Visit with a connection and the chart's settings; with what monitor, accounts and agents know.

        Args:
            api: the connection.
            settings: the chart's.
            scope: where jobs are served.
            monitor: what Prometheus tells.
            accounts: the books.
            agents: the agents' pages.
            hurries: whether others wait for an urgent visit.
        """
        self._api = api
        self._settings = settings
        self._scope = scope
        self._monitor = monitor
        self._frontier = FrontierStep(api)
        self._drift = DriftStep(api, monitor.take_drift)
        self._profile = ProfileStep(api, settings, agents)
        self._pods = ProfilingPods(api)
        self._order = OrderStep(api, agents)
        self._plan = PlanStep(api, settings, monitor, agents)
        self._account = AccountStep(api, accounts)
        self._status = StatusStep(api)
        self._hurries = hurries
        self._waits: dict[JobKey, int] = {}

    async def visit(self, key: JobKey) -> float | None:
        """Visit a job; return after how many seconds to come again, None if it is gone.

        Raises:
            ApiRefusal: the API server refused; the visit is to be repeated.
        """
        with logs.about(*key), span("visit", namespace=key[0], job=key[1]):
            return await self._visit(key)

    async def _visit(self, key: JobKey) -> float | None:
        begin = time.monotonic()
        outcome = "failed"
        try:
            job = await self._api.get(PERSEUS_JOB, *key)
            if job is None:
                await self._withdraw(key)
                self.forget(key)
                outcome = "settled"
                return None
            if job["metadata"].get("deletionTimestamp"):
                await self._release(key, job)
                outcome = "settled"
                return None
            logs.about_generation(job["metadata"]["generation"])
            visit = Visit(key, job, Story())
            if not await self._bring_about(visit):
                outcome = "planned"
                return 0.0
            visit.story.finish()
            await self._status.write(visit)
            outcome = "settled" if visit.settled else "waiting"
            return WAITING_SECONDS if visit.measuring else self._pause(key, visit)
        finally:
            metrics.RECONCILES.labels(outcome=outcome).inc()
            metrics.RECONCILE_SECONDS.observe(time.monotonic() - begin)

    def _pause(self, key: JobKey, visit: Visit) -> float:
        """Return the seconds to the next visit: what nobody tells of is looked for more and more seldom."""
        if visit.settled:
            self._waits.pop(key, None)
            return STEADY_SECONDS if visit.is_watched else REFERENCE_SECONDS
        waits = self._waits[key] = self._waits.get(key, 0) + 1
        return min(LONGEST_WAITING_SECONDS, WAITING_SECONDS * 1.5 ** (waits - 1))

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone."""
        self._unwatch(key)
        self._profile.forget(key)
        self._order.forget(key)
        self._account.forget(key)
        self._waits.pop(key, None)

    def _unwatch(self, key: JobKey) -> None:
        watched = self._monitor.find(key)
        metrics.forget_job(*key, len(watched.plan.pipelines) if watched else 0)
        self._monitor.forget(key)

    async def sweep(self) -> list[Document]:
        """Delete plans whose jobs are gone: an operator that was away when a finalizer was forced off.

        Returns:
            all jobs that are there.

        Raises:
            ApiRefusal: the API server refused.
        """
        selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}"
        # Plans first: a job that is not there afterwards was not there when its plan was seen, or is gone since.
        plans = await self._api.find(CONFIG_MAP, self._settings.namespace, selector)
        jobs = await self._scope.jobs(self._api)
        uids = {(job["metadata"]["namespace"], job["metadata"]["name"]): job["metadata"]["uid"] for job in jobs}
        for plan in plans:
            labels = plan["metadata"].get("labels") or {}
            key = labels.get(names.LABEL_JOB_NAMESPACE, ""), labels.get(names.LABEL_JOB, "")
            if uids.get(key, "") != labels.get(names.LABEL_JOB_UID):
                logger.info("plan %s belongs to no job", plan["metadata"]["name"])
                await self._api.delete(CONFIG_MAP, self._settings.namespace, plan["metadata"]["name"], plan)
        return jobs

    async def _withdraw(self, key: JobKey) -> None:
        """Somebody forced our finalizer off: the plan must not outlive the job."""
        name = names.plan_config_map_name(*key)
        plan = await self._api.get(CONFIG_MAP, self._settings.namespace, name)
        if plan is not None:
            await self._api.delete(CONFIG_MAP, self._settings.namespace, name, plan)

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

    async def _bring_about(self, visit: Visit) -> bool:
        """Bring everything about; return False if it was left at the plan, since others wait for theirs."""
        job, story = visit.job, visit.story
        try:
            spec = PerseusJobSpec.parse(job["spec"])
        except DocumentError as error:
            story.say(Condition.ACCEPTED, False, Reason.INVALID_SPEC, str(error))
            return True
        await self._hold(job)
        builder = Builder(job, spec, self._settings)
        reason = Reason.SUSPENDED if spec.suspend else Reason.VALID
        words = "suspended: every clock is given back" if spec.suspend else "the spec makes sense"
        story.say(Condition.ACCEPTED, True, reason, words)
        try:
            visit.profile = await self._profile.find(builder, spec)
        except ProfileProblem as problem:
            story.say(Condition.PROFILE_VALID, False, problem.reason, str(problem))
            visit.settled = False
            return True
        if visit.profile is None:
            await self._measure(visit, builder, spec)
            return True
        drift = await self._drift.bring_about(visit, builder, spec, visit.profile)
        visit.repeats = drift.repeats.number
        tell_profile(visit, visit.profile, drift)
        if spec.profiling.mode is ProfilingMode.PODS:
            await self._pods.remove(builder)
        if drift.measures and await self._measure_anew(visit, builder, spec, drift):
            return True
        is_planned = False
        if spec.schedule is JobSchedule.RECORDED:
            # What is planned is what runs: training comes first.
            running = await self._workload(visit, builder, spec)
            if not await self._has_orders(visit, builder, spec, visit.profile, running):
                await self._account.bring_about(visit, builder)
                return True
            frontier = await self._frontier.bring_about(visit, builder, visit.profile, drift)
        else:
            frontier = await self._frontier.bring_about(visit, builder, visit.profile, drift)
            if frontier is not None and self._plan.comes_first(visit, builder, spec):
                await self._plan.bring_about(visit, builder, spec, frontier, running=True)
                is_planned = True
                if self._hurries():
                    return False
            running = await self._workload(visit, builder, spec)
        visit.frontier = frontier
        if frontier is not None and not (is_planned and running):
            await self._plan.bring_about(visit, builder, spec, frontier, running)
        await self._account.bring_about(visit, builder)
        return True

    async def _has_orders(
        self, visit: Visit, builder: Builder, spec: PerseusJobSpec, profile: LoadedProfile, running: bool
    ) -> bool:
        """Bring the order that the ranks run; return whether it is known and the profile holds it."""
        pods = await trainer_pods(self._api, builder.namespace, builder.name) if running else []
        if not await self._order.bring_about(visit, builder, spec, pods, Condition.FRONTIER_READY):
            return False
        try:
            check_orders(builder.pipeline, profile.name, profile.profile)
        except ProfileProblem as problem:
            visit.story.say(Condition.PROFILE_VALID, False, problem.reason, str(problem))
            visit.settled = False
            return False
        return True

    async def _workload(self, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> bool:
        """Have the training pods run, or look at those of the user's own workload; return whether they do."""
        if spec.workload_ref is not None:
            return await look_at_workload(self._api, visit, spec, spec.workload_ref)
        return await bring_about_workload(self._api, visit, builder, spec, bool(self._settings.prometheus.url))

    async def _measure(self, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> None:
        """Measure the profile: while the job trains, or before, on pods of their own."""
        if spec.profiling.mode is ProfilingMode.PODS:
            running, pods = await self._pods.bring_about(visit, builder, spec)
        else:
            running = await self._workload(visit, builder, spec)
            pods = await trainer_pods(self._api, builder.namespace, builder.name) if running else []
        if spec.schedule is JobSchedule.RECORDED and running:
            visit.measuring = True
            if not await self._order.bring_about(visit, builder, spec, pods, Condition.PROFILE_VALID):
                return
        await self._profile.measure(visit, builder, spec, pods, running)

    async def _measure_anew(self, visit: Visit, builder: Builder, spec: PerseusJobSpec, drift: Drift) -> bool:
        """Go one step on in measuring a profile that has drifted; return False where that cannot be."""
        running = await self._workload(visit, builder, spec)
        if not running or spec.mode is RunMode.DRY_RUN:
            await self._drift.close(builder, drift)
            return False
        # The plan in force gives way to the sweep's: nobody is slowed down for a straggler meanwhile.
        self._unwatch(visit.key)
        pods = await trainer_pods(self._api, builder.namespace, builder.name)
        known = True
        if spec.schedule is JobSchedule.RECORDED:
            known = await self._order.bring_about(visit, builder, spec, pods, Condition.PROFILE_VALID)
        if known and await self._profile.measure(visit, builder, spec, pods, running) is not Outcome.GOES_ON:
            await self._drift.close(builder, drift)
        words = f"instructions have drifted from the profile, which is measured anew ({drift.repeats.number}"
        visit.story.preface(Condition.PROFILE_VALID, f"{words} of {spec.profiling.max_repeats} times)")
        await self._account.bring_about(visit, builder)
        return True

    async def _hold(self, job: Document) -> None:
        metadata = job["metadata"]
        finalizers = metadata.get("finalizers") or []
        wanted = [each for each in finalizers if each != names.FINALIZER]
        if self._settings.holds_jobs:
            wanted = finalizers if names.FINALIZER in finalizers else [*finalizers, names.FINALIZER]
        if wanted != finalizers:
            patch = {"metadata": {"finalizers": wanted or None, "resourceVersion": metadata["resourceVersion"]}}
            await self._api.merge(PERSEUS_JOB, metadata["namespace"], metadata["name"], patch)
