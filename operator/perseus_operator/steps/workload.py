"""The step that has the training pods run: an Indexed Job and a headless Service from the job's own template."""

from __future__ import annotations

import time

from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec

from perseus_operator.children import Builder, Document, TemplateProblem, template_of
from perseus_operator.client import JOB, Api, ApiRefusal
from perseus_operator.report import FAILED, REPORT_WITHIN_SECONDS, SUCCEEDED
from perseus_operator.upkeep import condition_unix_seconds, ensure, job_condition, put_right
from perseus_operator.visit import Visit

_ENDS = (Reason.TRAINING_FINISHED, Reason.TRAINING_FAILED)


async def bring_about_workload(api: Api, visit: Visit, builder: Builder, spec: PerseusJobSpec, reports: bool) -> bool:
    """Have the training pods run; return whether they are wanted and not finished.

    A finished Job that goes before its end is told would be made again, and training with it; the report needs it to
    tell when training ended. So its time to live is written only when both are there.

    Args:
        api: the connection.
        visit: gathers what is told.
        builder: of the job's children.
        spec: of the job.
        reports: whether there will be a report, unless nothing was counted.

    Raises:
        ApiRefusal: the API server refused for a while; what it refuses for good is told in a condition.
    """
    say = visit.story.say
    ended, expires = told_end(visit.job), False
    present = await api.get(JOB, builder.namespace, builder.name)
    if ended is not None:
        if present is None:
            # Its time to live is over, or a person tidied up: training that has ended does not begin again.
            say(Condition.WORKLOAD_READY, *ended)
            return False
        expires = not reports or _is_reported(visit.job, present)
    try:
        wanted = builder.workload(expires=expires)
        await ensure(api, builder.service())
        job = await put_right(api, wanted, present)
    except TemplateProblem as problem:
        say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, str(problem))
        return False
    except ApiRefusal as refusal:
        if not refusal.is_final:
            raise
        say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, f"spec.template: {refusal}")
        return False
    pods = int(job["spec"]["completions"])  # of the template that it was made from
    complete, failed = job_condition(job, "Complete"), job_condition(job, "Failed")
    if (complete or failed) is not None and not expires and spec.ttl_seconds_after_finished is not None:
        visit.settled = False  # What is written now is what the next visit goes by.
    if complete is not None:
        visit.ended = (SUCCEEDED, condition_unix_seconds(job, "Complete"))
        say(Condition.WORKLOAD_READY, True, Reason.TRAINING_FINISHED, f"all {spec.parallelism.ranks} ranks finished")
        return False
    if failed is not None:
        visit.ended = (FAILED, condition_unix_seconds(job, "Failed"))
        say(Condition.WORKLOAD_READY, False, Reason.TRAINING_FAILED, failed)
        return False
    ready = int((job.get("status") or {}).get("ready") or 0)
    remark = _remark(wanted, job)
    suspended = bool(job["spec"].get("suspend"))
    if suspended:
        why = "spec.suspend is true" if spec.suspend else "the training Job waits in its queue"
        say(Condition.WORKLOAD_READY, False, Reason.SUSPENDED, f"{why}{remark}")
    elif ready < pods:
        words = f"{ready} of {pods} training pods are ready{remark}"
        say(Condition.WORKLOAD_READY, False, Reason.PODS_STARTING, words)
    else:
        say(Condition.WORKLOAD_READY, True, Reason.PODS_RUNNING, f"all {pods} training pods are ready{remark}")
    return not suspended


def told_end(job: Document) -> tuple[bool, Reason, str] | None:
    """Return what was told of a training that has ended."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        reason = condition.get("reason")
        if condition.get("type") == Condition.WORKLOAD_READY and reason in _ENDS:
            return reason == Reason.TRAINING_FINISHED, Reason(reason), str(condition.get("message", ""))
    return None


def _is_reported(job: Document, training: Document) -> bool:
    """Whether the report of a training that has ended is there, or will never be."""
    ended = max(condition_unix_seconds(training, kind) for kind in ("Complete", "Failed"))
    return "report" in (job.get("status") or {}) or time.time() > ended + REPORT_WITHIN_SECONDS


def _remark(wanted: Document, job: Document) -> str:
    if template_of(job) in (None, template_of(wanted)):
        return ""
    remedy = f"delete Job {job['metadata']['name']} to start training anew"
    return f"; spec.template has changed since, and running pods keep the old one: {remedy}"
