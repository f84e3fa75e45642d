"""Ranks whose plan is not followed, as their agents report it: asked for all jobs at once, told in one sentence. Pure.

A healthy fleet answers with nothing. A sick one is bounded: a few ranks of each job, and the condition names the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perseus_api.conditions import Reason

from perseus_operator.transport import samples

MAXIMUM_OF_A_JOB = 5
_STATE, _REFUSED = "perseus_rank_state", "perseus_pod_refused"
QUESTION = (
    f'topk by (namespace, job) ({MAXIMUM_OF_A_JOB}, {{__name__=~"{_STATE}|{_REFUSED}",'
    'state!~"following|not_held|waiting|no_plan|disconnected"} == 1)'
)
_MISMATCHES = {
    "order": "runs its instructions in another order than the plan",
    "unfinished": "runs fewer instructions in an iteration than the plan",
    "surplus": "runs more instructions in an iteration than the plan",
    "broken": "left an iteration by an exception",
}
_REFUSALS = {
    "other_rank": "it says to be a rank that another pod is: PERSEUS_RANK must be left as the operator sets it",
    "other_job": "it says to belong to another job: PERSEUS_JOB and PERSEUS_NAMESPACE must be left as they are set",
    "second_process": "two of its processes (or a fork) train as the same rank: only one may use the hooks",
    "leased": "its GPU is leased to another pod",
    "shared": "its GPU is shared: a rank needs a whole one",
    "mig": "its GPU is in MIG mode: a rank needs a whole one",
    "bad_hello": "its trainer library speaks another version of the protocol: update perseus_trainer in the image",
}


@dataclass(frozen=True, order=True)
class Trouble:
    """A rank whose plan is not followed, or a pod that an agent does not serve.

    Attributes:
        state: of the rank; ``not_served`` for a pod.
        reason: from the agent's short lists; empty where it has none.
        pod: its name.
        pipeline: empty for a pod that is not served.
        stage: empty for a pod that is not served.
    """

    state: str
    reason: str
    pod: str
    pipeline: str = ""
    stage: str = ""


def read_troubles(data: Any) -> dict[tuple[str, str], tuple[Trouble, ...]]:
    """Return the troubles of each job, in an order that does not change from answer to answer.

    Raises:
        NoAnswer: this is no answer of Prometheus.
    """
    found: dict[tuple[str, str], list[Trouble]] = {}
    for labels, _ in samples(data):
        state = labels.get("state", "") if labels.get("__name__") == _STATE else "not_served"
        place = (labels.get(name, "")[:253] for name in ("pod", "pipeline", "stage"))
        trouble = Trouble(state[:64], labels.get("reason", "")[:64], *place)
        found.setdefault((labels.get("namespace", ""), labels.get("job", "")), []).append(trouble)
    return {key: tuple(sorted(set(each))) for key, each in found.items()}


def told(troubles: tuple[Trouble, ...]) -> tuple[Reason, str]:
    """Return the reason and the sentence of a condition."""
    first = troubles[0]
    more = f"; {len(troubles) - 1} more" if len(troubles) > 1 else ""
    if len(troubles) >= MAXIMUM_OF_A_JOB:
        more = " and others"
    if first.state == "not_served":
        why = _REFUSALS.get(first.reason, first.reason)
        return Reason.RANK_REFUSED, f"the agent does not serve pod {first.pod}: {why}{more}; it runs at full speed"
    whose = f"pipeline {first.pipeline} stage {first.stage} (pod {first.pod})"
    if first.state == "mismatch":
        why = _MISMATCHES.get(first.reason, "does something else than the plan")
        return Reason.PLAN_NOT_FOLLOWED, f"{whose} {why}{more}: its GPU is unlocked until an iteration matches"
    if first.state == "interference":
        return Reason.CLOCKS_REFUSED, f"{whose}: somebody else sets its GPU's clock{more}; it is left alone"
    return Reason.CLOCKS_REFUSED, f"{whose}: the device refuses clocks ({first.reason}){more}; it runs at full speed"
