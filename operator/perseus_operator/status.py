"""The parts of a PerseusJob's status, and the events that go with it. Integers only; pure."""

from __future__ import annotations

from typing import Any

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.frontier import Frontier
from perseus_api.plan import Plan

from perseus_operator.planning import Stragglers, planned_seconds, predicted_savings
from perseus_operator.profiles import LoadedProfile
from perseus_operator.prometheus import JobEnergy

FRONTIER_POINTS = 8
Document = dict[str, Any]
_BAD = {
    Reason.INVALID_SPEC, Reason.PROFILE_INVALID, Reason.PROFILE_MISSING, Reason.PROFILE_TOO_SMALL,
    Reason.OPTIMISATION_FAILED, Reason.PROFILING_FAILED, Reason.TEMPLATE_REFUSED, Reason.TRAINING_FAILED,
    Reason.PLAN_REFUSED,
}  # fmt: skip


def event(job: Document, condition: Condition, reason: Reason, message: str, now: str) -> Document:
    """Return the event that tells a condition's change."""
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
        "message": f"{condition.value}: {message}",
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


def profile_status(profile: LoadedProfile) -> Document:
    """Return what the status tells of the profile."""
    told: Document = {
        "name": profile.name,
        "checksum": profile.checksum,
        "source": profile.source.value,
        "clocks": profile.clocks,
    }
    if profile.sweep_iterations is not None and profile.sweep_slowdown_permille is not None:
        told["sweepIterations"] = profile.sweep_iterations
        told["sweepSlowdownPermille"] = profile.sweep_slowdown_permille
    return told


def straggler_status(plan: Plan, stragglers: Stragglers) -> list[Document]:
    """Return the slow pipelines for the status, observed over planned time in thousandths."""
    found = []
    for index in stragglers.pipelines[:64]:
        slowdown = stragglers.deadline_seconds / planned_seconds(plan, index) - 1
        found.append({"pipeline": index, "slowdownPermille": max(0, min(1_000_000, round(1000 * slowdown)))})
    return found


def savings_status(energy: JobEnergy) -> Document | None:
    """Return measured savings for the status, None while nothing was counted."""
    baseline = energy.measured + energy.predicted
    if energy.energy <= 0 or baseline <= 0:
        return None
    return {
        "permille": max(-100_000, round(1000 * (1 - energy.energy / baseline))),
        "energyJoules": round(energy.energy),
        "baselineJoules": round(baseline),
        "source": "Predicted" if energy.predicted > energy.measured else "Measured",
    }
