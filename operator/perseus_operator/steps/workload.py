"""The step that has the training pods run: an Indexed Job and a headless Service from the job's own template."""

from __future__ import annotations

from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec

from perseus_operator.children import Builder
from perseus_operator.client import Api, ApiRefusal
from perseus_operator.upkeep import ensure, job_condition
from perseus_operator.visit import Visit


async def bring_about_workload(api: Api, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> bool:
    """Have the training pods run; return whether they are wanted and not finished.

    Raises:
        ApiRefusal: the API server refused for a while; what it refuses for good is told in a condition.
    """
    ranks = spec.parallelism.ranks
    try:
        await ensure(api, builder.service())
        job = await ensure(api, builder.workload())
    except ApiRefusal as refusal:
        if not refusal.is_final:
            raise
        visit.story.say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, f"spec.template: {refusal}")
        return False
    if job_condition(job, "Complete") is not None:
        visit.story.say(Condition.WORKLOAD_READY, True, Reason.TRAINING_FINISHED, f"all {ranks} ranks finished")
        return False
    failed = job_condition(job, "Failed")
    if failed is not None:
        visit.story.say(Condition.WORKLOAD_READY, False, Reason.TRAINING_FAILED, failed)
        return False
    ready = int((job.get("status") or {}).get("ready") or 0)
    if spec.suspend:
        visit.story.say(Condition.WORKLOAD_READY, False, Reason.SUSPENDED, "spec.suspend is true")
    elif ready < ranks:
        visit.story.say(
            Condition.WORKLOAD_READY, False, Reason.PODS_STARTING, f"{ready} of {ranks} training pods are ready"
        )
    else:
        visit.story.say(Condition.WORKLOAD_READY, True, Reason.PODS_RUNNING, f"all {ranks} training pods are ready")
    return not spec.suspend
