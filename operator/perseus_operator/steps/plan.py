"""The step that writes the plan: for the objective, or for a straggler's time; and from which iteration it holds."""

from __future__ import annotations

import base64
import binascii
import logging
import re
import time
from datetime import datetime

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.errors import DocumentError
from perseus_api.frontier import Frontier
from perseus_api.job import PerseusJobSpec, RunMode
from perseus_api.plan import JobReference, Plan

from perseus_operator import metrics
from perseus_operator.causes import Cause, Finding
from perseus_operator.children import Builder, Document, contains
from perseus_operator.client import CONFIG_MAP, POD, Api
from perseus_operator.measurements import NOTICE_SECONDS, first_iteration
from perseus_operator.monitor import JobKey, Monitor, WatchedJob, observed_ratio
from perseus_operator.planning import (
    Stragglers,
    make_plan,
    planned_seconds,
    predicted_savings,
    same_clocks,
    stragglers_of,
)
from perseus_operator.profiling.agents import Agents, ranks_of_pipeline, trainer_pods
from perseus_operator.profiling.sweeping import next_iteration
from perseus_operator.settings import Settings
from perseus_operator.steps.telling import tell_applied, tell_as_before, tell_observed, tell_stragglers
from perseus_operator.visit import StragglerFinding, Visit

MOST_FINDINGS, MOST_NODES = 64, 4096
_POD_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
logger = logging.getLogger("perseus.operator")


class PlanStep:
    """Writes plans, and tells the monitor which holds."""

    def __init__(self, api: Api, settings: Settings, monitor: Monitor, agents: Agents) -> None:
        """Work over a connection, into the operator's namespace."""
        self._api = api
        self._agents = agents
        self._settings = settings
        self._monitor = monitor
        self._nodes: dict[tuple[JobKey, str], str] = {}

    def comes_first(self, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> bool:
        """Whether the plan needs no look at the training pods: none was made yet, or a straggler is answered."""
        if spec.suspend or spec.mode is RunMode.DRY_RUN:
            return False
        watched = self._monitor.find(visit.key)
        if watched is not None:
            return watched.wanted != watched.watch.stragglers
        return visit.is_new and spec.workload_ref is None and not builder.is_queued

    async def bring_about(
        self, visit: Visit, builder: Builder, spec: PerseusJobSpec, frontier: Frontier, running: bool
    ) -> None:
        """Write the plan for the objective and the situation, if it is another one than holds.

        Args:
            visit: gathers the plan and what is told of it.
            builder: of the job's children.
            spec: of the job.
            frontier: of its profile.
            running: whether the training pods are wanted and not finished.

        Raises:
            ApiRefusal: the API server refused.
        """
        name = names.plan_config_map_name(*visit.key)
        config_map = await self._api.get(CONFIG_MAP, self._settings.namespace, name)
        if not running or spec.mode is RunMode.DRY_RUN:
            if config_map is not None:
                _keep_generation(visit, builder, decoded_plan(config_map))
                await self._api.delete(CONFIG_MAP, self._settings.namespace, name)
            self._monitor.forget(visit.key)
        if spec.mode is RunMode.DRY_RUN:
            _tell_dry_run(visit, builder, spec, frontier)
            return
        if not running:
            visit.story.say(Condition.PLAN_APPLIED, False, Reason.WAITING, "training does not run: no clock is locked")
            return
        before = decoded_plan(config_map)
        reference = JobReference(namespace=builder.namespace, name=builder.name, uid=builder.uid)
        if before is not None and before.job != reference:
            before = None
        sweep = before if before is not None and before.sweep is not None else None
        if sweep is not None:
            before = None  # It measured, and nothing that it did is a plan to go on from.
        watched = self._monitor.find(visit.key)
        if before is not None and (watched is None or watched.plan != before):
            age = age_seconds(config_map or {}, time.time())
            watched = self._monitor.resume(visit.key, before, spec, age)
        stragglers = watched.wanted if watched else Stragglers()
        restarted = watched is not None and watched.restarted
        generation = before.generation if before else last_generation(visit.job, config_map)
        wanted = make_plan(reference, spec, frontier, stragglers, generation + 1, 0)
        if before is not None and same_clocks(before, wanted) and not restarted:
            plan = before
            labels = builder.plan_config_map("")["metadata"]["labels"]
            if not contains((config_map or {})["metadata"].get("labels") or {}, labels):
                # By these agents find it. The plan is the same one, so its generation stays.
                encoded = base64.b64encode(plan.encode()).decode()
                await self._api.apply(builder.plan_config_map(encoded))
            self._monitor.settled(visit.key, spec, stragglers)
        else:
            if sweep is not None or (before is None and (builder.recorded is not None or visit.repeats)):
                # Training is on its way: it was measured, or its order was seen.
                first, why = await self._from_now_on(visit, builder, spec), "initial"
            elif before is None:
                first, why = spec.accounting.baseline_iterations + 1, "initial"
            elif restarted:
                first, why = 1, "restart"
            else:
                first = _first_iteration(before, watched)
                why = "straggler" if stragglers.pipelines else "recovery"
                if stragglers == stragglers_of(before):
                    why = "objective"
            plan = wanted.model_copy(update={"first_iteration": first})
            encoded = base64.b64encode(plan.encode()).decode()
            await self._api.apply(builder.plan_config_map(encoded))
            metrics.REPLANS.labels(reason=why).inc()
            logger.info("%s/%s: plan %d (%s) from iteration %d", *visit.key, plan.generation, why, first)
            self._monitor.planned(visit.key, before, plan, spec, stragglers)
            if sweep is not None:
                self._monitor.quieten(visit.key)
        visit.plan, visit.stragglers = plan, stragglers
        _export(visit.key, plan, stragglers)
        tell_applied(visit, self._monitor, spec, plan)
        tell_observed(visit, self._monitor, spec)
        visit.findings = await self._findings(visit.key, stragglers)
        tell_stragglers(visit, self._monitor, spec, plan, stragglers)
        tell_as_before(visit, self._monitor, plan)

    async def _findings(self, key: JobKey, stragglers: Stragglers) -> list[StragglerFinding]:
        """Return what a person needs to act: cause, pod, node and GPU of each straggler."""
        job = self._monitor.find(key)
        if job is None:
            return []
        found = []
        for index in stragglers.pipelines[:MOST_FINDINGS]:
            finding = job.causes.get(index, Finding(Cause.UNKNOWN))
            node = await self._node_of(key, finding.pod)
            found.append(StragglerFinding(index, observed_ratio(job, index), finding, node))
        metrics.tell_causes(
            *key,
            {
                (
                    str(each.pipeline),
                    each.finding.cause.value,
                    each.finding.pod,
                    each.node,
                    each.finding.gpu,
                ): each.ratio
                for each in found
            },
        )
        return sorted(found, key=lambda each: -each.ratio)

    async def _node_of(self, key: JobKey, pod: str) -> str:
        """Return the node of a training pod. Its name comes from Prometheus: the API server says whether it is one."""
        if not _POD_NAME.fullmatch(pod):
            return ""
        if (key, pod) not in self._nodes:
            selector = f"{names.LABEL_JOB}={key[1]}"
            pods = await self._api.find(POD, key[0], selector, field_selector=f"metadata.name={pod}")
            node = str((pods[0].get("spec") or {}).get("nodeName") or "") if pods else ""
            if len(self._nodes) >= MOST_NODES:
                self._nodes.clear()
            self._nodes[(key, pod)] = node
        return self._nodes[(key, pod)]

    async def _from_now_on(self, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> int:
        """Return from when the first plan can hold: the ranks are beyond the baseline, and their agents know where."""
        pods = await trainer_pods(self._api, builder.namespace, builder.name)
        reports = await self._agents.reports(visit.job, ranks_of_pipeline(spec), pods)
        return max(next_iteration(reports, time.time(), NOTICE_SECONDS), spec.accounting.baseline_iterations + 1)


def _tell_dry_run(visit: Visit, builder: Builder, spec: PerseusJobSpec, frontier: Frontier) -> None:
    """Say what the plan would save; it is written nowhere, and no clock is locked."""
    reference = JobReference(namespace=builder.namespace, name=builder.name, uid=builder.uid)
    visit.plan, visit.stragglers = make_plan(reference, spec, frontier, Stragglers(), 1, 0), Stragglers()
    saved, seconds = predicted_savings(visit.plan, Stragglers()), planned_seconds(visit.plan, 0)
    words = (
        f"dry run: the plan would save {100 * saved:.1f} % of the energy at {seconds:.3f} s an iteration (predicted); "
        f"the frontier goes from {frontier.plans[0].iteration_seconds:.3f} s to "
        f"{frontier.plans[-1].iteration_seconds:.3f} s; no clock is locked"
    )
    visit.story.say(Condition.PLAN_APPLIED, True, Reason.DRY_RUN, words)
    visit.story.say(Condition.STRAGGLING, False, Reason.STRAGGLERS_IGNORED, "dry run")


def _first_iteration(before: Plan, watched: WatchedJob | None) -> int:
    if watched is None:
        return 1
    planned = max(planned_seconds(before, index) for index in range(len(before.pipelines)))
    report = watched.report
    since_answer = time.monotonic() - report.answered_seconds if report.answered_seconds else 0.0
    return first_iteration(planned, report.pipelines, since_answer, NOTICE_SECONDS)


def _keep_generation(visit: Visit, builder: Builder, withdrawn: Plan | None) -> None:
    """Let the status remember a plan that is taken away before any status told of it."""
    if withdrawn is not None and withdrawn.job.uid == builder.uid and withdrawn.sweep is None:
        visit.plan, visit.stragglers = withdrawn, stragglers_of(withdrawn)


def last_generation(job: Document, config_map: Document | None) -> int:
    """Generations only grow, also over a withdrawn or damaged plan: the status remembers."""
    told = ((job.get("status") or {}).get("plan") or {}).get("generation", 0)
    kept = decoded_plan(config_map)
    return max(int(told), kept.generation if kept else 0)


def age_seconds(document: Document, unix_seconds: float) -> float:
    """Return for how long an object has been as it is, by the API server's clock; 0 if nobody says."""
    times = [each.get("time") for each in document.get("metadata", {}).get("managedFields") or []]
    try:
        changed = max(datetime.fromisoformat(each).timestamp() for each in times)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, unix_seconds - changed)


def _export(key: JobKey, plan: Plan, stragglers: Stragglers) -> None:
    metrics.PLAN_GENERATION.labels(*key).set(plan.generation)
    metrics.PREDICTED_SAVINGS.labels(*key).set(predicted_savings(plan, stragglers))
    for pipeline in range(len(plan.pipelines)):
        metrics.PLANNED_SECONDS.labels(*key, str(pipeline)).set(planned_seconds(plan, pipeline))
    slowest = plan.variants[plan.pipelines[stragglers.pipelines[0]]] if stragglers.pipelines else None
    ratio = stragglers.deadline_seconds / slowest.iteration_seconds if slowest else 1.0
    metrics.SLOWDOWN_RATIO.labels(*key).set(ratio)


def decoded_plan(config_map: Document | None) -> Plan | None:
    """Return a plan ConfigMap's plan, None if there is none or it is damaged."""
    if config_map is None:
        return None
    try:
        return Plan.decode(
            base64.b64decode((config_map.get("binaryData") or {}).get(names.PLAN_KEY, ""), validate=True)
        )
    except (DocumentError, binascii.Error):
        return None
