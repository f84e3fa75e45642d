"""The step that looks at a workload of the user's own (`spec.workloadRef`). It writes nothing of it."""

from __future__ import annotations

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec, WorkloadReference

from perseus_operator.client import POD, Api, Kind
from perseus_operator.report import FAILED, SUCCEEDED
from perseus_operator.steps.workload import told_end
from perseus_operator.upkeep import condition_unix_seconds
from perseus_operator.visit import Visit
from perseus_operator.workloads import SERVED, State, ready_gpus, state_of


async def look_at_workload(api: Api, visit: Visit, spec: PerseusJobSpec, reference: WorkloadReference) -> bool:
    """Tell how the workload stands; return whether it trains, so that a plan is wanted.

    Raises:
        ApiRefusal: the API server refused.
    """
    say = visit.story.say
    visit.is_watched = False
    named = f"{reference.kind.value} {reference.name}"
    served = SERVED[reference.kind]
    version = await api.preferred_version(served.group)
    if version is None:
        words = f"this cluster serves no {reference.kind.value} ({served.group}): install it, or use spec.template"
        say(Condition.WORKLOAD_READY, False, Reason.WORKLOAD_KIND_MISSING, words)
        return False
    kind = Kind(f"{served.group}/{version}", reference.kind.value, served.plural)
    namespace, job = visit.key
    workload = await api.get(kind, namespace, reference.name)
    ended = told_end(visit.job)
    if workload is None and ended is not None:
        # Its time to live is over, or a person tidied up.
        say(Condition.WORKLOAD_READY, *ended)
        return False
    if workload is None:
        label = f"{names.LABEL_JOB}={job}"
        words = f"there is no {named} in namespace {namespace}: create it, with the label {label} on its pods"
        say(Condition.WORKLOAD_READY, False, Reason.WORKLOAD_MISSING, words)
        visit.settled = False
        return False
    state, words = state_of(reference.kind, workload)
    if state is State.FINISHED:
        visit.ended = (SUCCEEDED, condition_unix_seconds(workload, served.finished))
        say(Condition.WORKLOAD_READY, True, Reason.TRAINING_FINISHED, f"{named} finished")
    elif state is State.FAILED:
        visit.ended = (FAILED, condition_unix_seconds(workload, served.failed))
        say(Condition.WORKLOAD_READY, False, Reason.TRAINING_FAILED, f"{named}: {words}")
    elif state is State.SUSPENDED:
        say(Condition.WORKLOAD_READY, False, Reason.SUSPENDED, f"{named} is suspended")
    elif spec.suspend:
        say(Condition.WORKLOAD_READY, False, Reason.SUSPENDED, f"spec.suspend is true: {named} trains at full speed")
    else:
        await _tell_pods(api, visit, spec, reference)
    return state is State.WANTED and not spec.suspend


async def _tell_pods(api: Api, visit: Visit, spec: PerseusJobSpec, reference: WorkloadReference) -> None:
    namespace, job = visit.key
    named = f"{reference.kind.value} {reference.name}"
    say, ranks = visit.story.say, spec.parallelism.ranks
    pods = await api.find(POD, namespace, f"{names.LABEL_JOB}={job},{names.LABEL_COMPONENT}!=optimiser")
    ready = ready_gpus(pods)
    visit.settled = visit.settled and ready >= ranks
    if not pods:
        label, how = f"{names.LABEL_JOB}={job}", SERVED[reference.kind].labelling
        words = f"no pod of {named} carries the label {label}: {how}"
        say(Condition.WORKLOAD_READY, False, Reason.PODS_UNLABELLED, words)
    elif ready < ranks:
        words = f"the ready pods of {named} own {ready} of {ranks} GPUs"
        say(Condition.WORKLOAD_READY, False, Reason.PODS_STARTING, words)
    else:
        words = f"the ready pods of {named} own all {ranks} GPUs"
        if ready > ranks:
            words = (
                f"the ready pods of {named} own {ready} GPUs, of which spec.parallelism describes {ranks}: the others "
                "run at full speed until it describes them, too"
            )
        say(Condition.WORKLOAD_READY, True, Reason.PODS_RUNNING, words)
