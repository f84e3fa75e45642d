"""The step that has profiling pods run: one pipeline of the user's own image and command, before training begins.

They are pods of the job like any other, so that agents serve them; when the profile is there they are taken away.
"""

from __future__ import annotations

from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec

from perseus_operator.children import COMPONENT_PROFILER, Builder, Document, TemplateProblem
from perseus_operator.client import JOB, Api, ApiRefusal
from perseus_operator.profiling.agents import trainer_pods
from perseus_operator.upkeep import ensure, job_condition
from perseus_operator.visit import Visit


class ProfilingPods:
    """Brings the profiling pods, and takes them away."""

    def __init__(self, api: Api) -> None:
        """Work over a connection."""
        self._api = api

    async def bring_about(self, visit: Visit, builder: Builder, spec: PerseusJobSpec) -> tuple[bool, list[Document]]:
        """Have the pods run; return whether they are wanted and not finished, and those that there are.

        Raises:
            ApiRefusal: the API server refused for a while; what it refuses for good is told in a condition.
        """
        say = visit.story.say
        try:
            await ensure(self._api, builder.service(COMPONENT_PROFILER))
            job = await ensure(self._api, builder.workload(COMPONENT_PROFILER))
        except TemplateProblem as problem:
            say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, str(problem))
            return False, []
        except ApiRefusal as refusal:
            if not refusal.is_final:
                raise
            say(Condition.WORKLOAD_READY, False, Reason.TEMPLATE_REFUSED, f"spec.template: {refusal}")
            return False, []
        ended = job_condition(job, "Failed") or job_condition(job, "Complete")
        if ended is not None:
            words = f"the profiling pods ended before everything was measured ({ended}): they must train on until then"
            say(Condition.WORKLOAD_READY, False, Reason.TRAINING_FAILED, words)
            return False, []
        say(Condition.WORKLOAD_READY, False, Reason.PODS_STARTING, "training begins when the profile is measured")
        pods = await trainer_pods(self._api, builder.namespace, builder.name, COMPONENT_PROFILER)
        return not spec.suspend, pods

    async def remove(self, builder: Builder) -> None:
        """Take the pods away.

        Raises:
            ApiRefusal: the API server refused.
        """
        name = builder.profiling_name
        present = await self._api.get(JOB, builder.namespace, name)
        if present is not None and not present["metadata"].get("deletionTimestamp"):
            await self._api.delete(JOB, builder.namespace, name, present)
