"""The kinds that `spec.workloadRef` may name: where the API serves them, and how each says how it stands. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from perseus_api import names
from perseus_api.job import WorkloadKind

Document = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """Where the API serves a kind, whichever version it prefers, and by which conditions it tells its end.

    Attributes:
        labelling: how its pods get a label.
    """

    group: str
    plural: str
    finished: str = ""
    failed: str = "Failed"
    labelling: str = "add it to its pod template"


SERVED = {
    WorkloadKind.JOB: Served("batch", "jobs", "Complete"),
    WorkloadKind.STATEFUL_SET: Served("apps", "statefulsets"),
    WorkloadKind.JOB_SET: Served("jobset.x-k8s.io", "jobsets", "Completed"),
    WorkloadKind.TRAIN_JOB: Served(
        "trainer.kubeflow.org", "trainjobs", "Complete",
        labelling="its own labels do not reach pods: add it by spec.podTemplateOverrides (Trainer 2.1), "
        "spec.runtimePatches (2.2), or in a runtime of its own",
    ),
    WorkloadKind.PYTORCH_JOB: Served("kubeflow.org", "pytorchjobs", "Succeeded"),
}  # fmt: skip


class State(StrEnum):
    """How a workload stands."""

    WANTED = "wanted"
    SUSPENDED = "suspended"
    FINISHED = "finished"
    FAILED = "failed"


def state_of(kind: WorkloadKind, workload: Document) -> tuple[State, str]:
    """Return how a workload stands, and its own words where it failed."""
    served = SERVED[kind]
    for condition in (workload.get("status") or {}).get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition.get("type") == served.finished:
            return State.FINISHED, ""
        if condition.get("type") == served.failed:
            return State.FAILED, str(condition.get("message") or condition.get("reason") or "it failed")
    return (State.SUSPENDED if _is_suspended(kind, workload.get("spec") or {}) else State.WANTED), ""


def _is_suspended(kind: WorkloadKind, spec: Document) -> bool:
    if kind is WorkloadKind.STATEFUL_SET:
        return bool(spec.get("replicas", 1) == 0)
    if kind is WorkloadKind.PYTORCH_JOB:
        return bool((spec.get("runPolicy") or {}).get("suspend"))
    return bool(spec.get("suspend"))


def ready_gpus(pods: list[Document]) -> int:
    """Return how many GPUs the pods that are ready own."""
    return sum(gpus_of(pod) for pod in pods if _is_ready(pod))


def gpus_of(pod: Document) -> int:
    """Return how many GPUs a pod owns."""
    limits = [((each.get("resources") or {}).get("limits") or {}) for each in pod["spec"].get("containers", [])]
    asked = [str(each.get(names.GPU_RESOURCE, 0)) for each in limits]
    return sum(int(each) for each in asked if each.isdecimal())


def _is_ready(pod: Document) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
