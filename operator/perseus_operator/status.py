"""The parts of a PerseusJob's status, and the events that go with it. Integers only; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.frontier import Frontier
from perseus_api.plan import Plan

from perseus_operator.planning import Stragglers, planned_seconds, predicted_savings
from perseus_operator.profiles import LoadedProfile
from perseus_operator.visit import StragglerFinding

FRONTIER_POINTS = 8
Document = dict[str, Any]
_BAD = {
    Reason.INVALID_SPEC, Reason.PROFILE_INVALID, Reason.PROFILE_MISSING, Reason.PROFILE_TOO_SMALL,
    Reason.PROFILE_DRIFTED, Reason.PROFILING_FAILED, Reason.OPTIMISATION_FAILED, Reason.TEMPLATE_REFUSED,
    Reason.WORKLOAD_KIND_MISSING, Reason.TRAINING_FAILED, Reason.PLAN_REFUSED, Reason.PLAN_NOT_FOLLOWED,
    Reason.RANK_REFUSED, Reason.CLOCKS_REFUSED,
}  # fmt: skip
# Steps that are passed through: the status tells them, an event for each would be noise in a fleet.
ON_ITS_WAY = frozenset(
    {
        Reason.PODS_STARTING, Reason.WAITING_FOR_AGENTS, Reason.MEASURING_BASELINE, Reason.RANK_TWICE, Reason.WAITING,
        Reason.RECORDING,
    }
)  # fmt: skip
_MAXIMUM_EVENT_MESSAGE = 1000


def events(job: Document, changed: Sequence[tuple[Condition, Reason, str]], now: str) -> list[Document]:
    """Return the events that tell what changed in one visit: one for each trouble, one for everything else together.

    The common event has the reason of the furthest condition.
    """
    found = [
        event(job, reason, f"{condition.value}: {message}", now)
        for condition, reason, message in changed
        if reason in _BAD
    ]
    good = [each for each in changed if each[1] not in _BAD]
    if good:
        words = "; ".join(f"{condition.value}: {message}" for condition, _, message in good)
        found.append(event(job, good[-1][1], words, now))
    return found


def event(job: Document, reason: Reason, message: str, now: str) -> Document:
    """Return an event of a job; a warning where the reason is a trouble."""
    metadata: dict[str, Any] = job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": "Warning" if reason in _BAD else "Normal",
        "reason": reason.value,
        "message": message[:_MAXIMUM_EVENT_MESSAGE],
        "source": {"component": names.MANAGED_BY},
        "reportingComponent": names.MANAGED_BY,
        "reportingInstance": names.MANAGED_BY,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def plan_status(plan: Plan, stragglers: Stragglers) -> Document:
    """Return what the status tells of a plan (milliseconds, thousandths; a prediction)."""
    return {
        "generation": plan.generation,
        "firstIteration": plan.first_iteration,
        "iterationMilliseconds": round(
            1000 * max(planned_seconds(plan, index) for index in range(len(plan.pipelines)))
        ),
        "predictedSavingsPermille": round(1000 * predicted_savings(plan, stragglers)),
    }


def frontier_status(frontier: Frontier) -> list[Document]:
    """Return points of the frontier for the status: pipeline time, and predicted savings against full speed."""
    plans = frontier.plans
    places = sorted({round(place * (len(plans) - 1) / (FRONTIER_POINTS - 1)) for place in range(FRONTIER_POINTS)})
    full = frontier.fastest.iteration_joules
    return [
        {
            "iterationMilliseconds": round(1000 * plans[place].iteration_seconds),
            "predictedSavingsPermille": round(1000 * (1 - plans[place].iteration_joules / full)),
        }
        for place in places
    ]


def profile_status(profile: LoadedProfile, repeats: int) -> Document:
    """Return what the status tells of the profile, and of the measurements that drifts have asked for."""
    told: Document = {
        "name": profile.name,
        "checksum": profile.checksum,
        "source": profile.source.value,
        "clocks": profile.clocks,
    }
    if profile.sweep_iterations is not None and profile.sweep_slowdown_permille is not None:
        told["sweepIterations"] = profile.sweep_iterations
        told["sweepSlowdownPermille"] = profile.sweep_slowdown_permille
    if repeats:
        told["repeats"] = repeats
    return told


def straggler_status(findings: list[StragglerFinding]) -> list[Document]:
    """Return the slow pipelines for the status: observed over planned time in thousandths, cause and place."""
    found = []
    for each in findings[:64]:
        place = {"pod": each.finding.pod, "node": each.node, "gpu": each.finding.gpu}
        found.append(
            {
                "pipeline": each.pipeline,
                "slowdownPermille": max(0, min(1_000_000, round(1000 * (each.ratio - 1)))),
                "cause": each.finding.cause.value,
                **{name: value for name, value in place.items() if value},
            }
        )
    return found
