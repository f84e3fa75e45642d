"""The parts of a PerseusJob's status, and the events that go with it. Integers only; pure."""

from __future__ import annotations

from typing import Any

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.plan import Plan

from perseus_operator.planning import Stragglers, planned_seconds, predicted_savings

Document = dict[str, Any]
_BAD = {
    Reason.INVALID_SPEC, Reason.PROFILE_INVALID, Reason.PROFILE_MISSING, Reason.PROFILE_TOO_SMALL,
    Reason.OPTIMISATION_FAILED, Reason.TEMPLATE_REFUSED, Reason.TRAINING_FAILED, Reason.PLAN_REFUSED,
}  # fmt: skip


def event(job: Document, condition: Condition, reason: Reason, message: str, now: str) -> Document:
    """Return the event that tells a condition's change."""
    kind = "Warning" if reason in _BAD else "Normal"
    return _event(job, kind, reason.value, f"{condition.value}: {message}", now)


def report_event(job: Document, message: str, now: str) -> Document:
    """Return the event that tells what a job that has ended used and saved."""
    return _event(job, "Normal", Reason.REPORTED.value, message, now)


def _event(job: Document, kind: str, reason: str, message: str, now: str) -> Document:
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
        "type": kind,
        "reason": reason,
        "message": message,
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


def straggler_status(plan: Plan, stragglers: Stragglers) -> list[Document]:
    """Return the slow pipelines for the status, observed over planned time in thousandths."""
    found = []
    for index in stragglers.pipelines[:64]:
        slowdown = stragglers.deadline_seconds / planned_seconds(plan, index) - 1
        found.append({"pipeline": index, "slowdownPermille": max(0, min(1_000_000, round(1000 * slowdown)))})
    return found
