"""The step that has the training pods run: an Indexed Job and a headless Service from the job's own template."""

from __future__ import annotations

from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec

from perseus_operator.children import ANNOTATION_TEMPLATE, Builder, Document, TemplateProblem
from perseus_operator.client import JOB, Api, ApiRefusal
from perseus_operator.report import FAILED, SUCCEEDED
from perseus_operator.upkeep import condition_unix_seconds, ensure, job_condition
from perseus_operator.visit import Visit

_ENDS = (Reason.TRAINING_FINISHED, Reason.TRAINING_FAILED)


async def bring_about_workload(api: Api, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> bool:
    """Have the training pods run; return whether they are wanted and not finished.

    Raises:
        ApiRefusal: the API server refused for a while; what it refuses for good is told in a condition.
    """
    say = visit.story.say
    ended = _ended_before(visit.job)
    if ended is not None and await api.get(JOB, builder.namespace, builder.name) is None:
        # Its time to live is over, or a person tidied up: training that has ended does not begin again.
        say(Condition.WORKLOAD_READY, *ended)
        return False
    try:
        wanted = builder.workload()
        await ensure(api, builder.service())
        job = await ensure(api, wanted)
    except TemplateProblem as problem:
        say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, str(problem))
        return False
    except ApiRefusal as refusal:
        if not refusal.is_final:
            raise
        say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, f"spec.template: {refusal}")
        return False
    pods = wanted["spec"]["completions"]
    if job_condition(job, "Complete") is not None:
        visit.ended = (SUCCEEDED, condition_unix_seconds(job, "Complete"))
        say(Condition.WORKLOAD_READY, True, Reason.TRAINING_FINISHED, f"all {spec.parallelism.ranks} ranks finished")
        return False
    failed = job_condition(job, "Failed")
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


def _ended_before(job: Document) -> tuple[bool, Reason, str] | None:
    """Return what was told of a training that has ended."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        reason = condition.get("reason")
        if condition.get("type") == Condition.WORKLOAD_READY and reason in _ENDS:
            return reason == Reason.TRAINING_FINISHED, Reason(reason), str(condition.get("message", ""))
    return None


def _remark(wanted: Document, job: Document) -> str:
    made_from = (job["metadata"].get("annotations") or {}).get(ANNOTATION_TEMPLATE)
    if made_from in (None, wanted["metadata"]["annotations"][ANNOTATION_TEMPLATE]):
        return ""
    remedy = f"delete Job {job['metadata']['name']} to start training anew"
    return f"; spec.template has changed since, and running pods keep the old one: {remedy}"
