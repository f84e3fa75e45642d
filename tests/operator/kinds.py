"""Workloads of other projects' kinds, with the CRDs out of their own Go modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseus_api import names

from harness.workload_controllers import (
    JOBSET_MODULE,
    PYTORCH_JOB_CRD,
    PYTORCH_JOB_MODULE,
    TRAINER_MODULE,
    module_folder,
)

_CONTAINER = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 8}}}
_POD = {
    "metadata": {"labels": {names.LABEL_JOB: "train"}},
    "spec": {"restartPolicy": "Never", "containers": [_CONTAINER]},
}


@dataclass(frozen=True)
class ForeignKind:
    """A kind that ``spec.workloadRef`` may name.

    Attributes:
        module: Go module that publishes its CRD, and where it stands in it; empty: built into Kubernetes.
        spec: of a workload that trains.
        finished: the status that says that it ended well; empty: it never does.
        suspended: what of the spec says that it does not train.
    """

    name: str
    api_version: str
    plural: str
    spec: dict[str, Any]
    suspended: dict[str, Any]
    finished: str = ""
    module: str = ""
    crd: str = ""

    def document(self) -> dict[str, Any]:
        """A workload named ``big``."""
        return {"apiVersion": self.api_version, "kind": self.name, "metadata": {"name": "big"}, "spec": self.spec}

    def crd_file(self) -> Path:
        """Its CRD, downloaded as part of the module (checked by Go's checksum database)."""
        return module_folder(self.module) / self.crd


JOB = ForeignKind(
    "Job", "batch/v1", "jobs", {"completions": 1, "parallelism": 1, "completionMode": "Indexed", "template": _POD},
    {"suspend": True}, "Complete",
)  # fmt: skip
STATEFUL_SET = ForeignKind(
    "StatefulSet", "apps/v1", "statefulsets",
    {
        "replicas": 1, "serviceName": "big", "selector": {"matchLabels": {names.LABEL_JOB: "train"}},
        "template": {"metadata": _POD["metadata"], "spec": {"containers": [_CONTAINER]}},
    },
    {"replicas": 0},
)  # fmt: skip
JOB_SET = ForeignKind(
    "JobSet", "jobset.x-k8s.io/v1alpha2", "jobsets",
    {"replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": {"template": _POD}}}]},
    {"suspend": True}, "Completed",
    JOBSET_MODULE, "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
)  # fmt: skip
TRAIN_JOB = ForeignKind(
    "TrainJob", "trainer.kubeflow.org/v1alpha1", "trainjobs", {"runtimeRef": {"name": "torch-distributed"}},
    {"suspend": True}, "Complete",
    TRAINER_MODULE, "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml",
)  # fmt: skip
PYTORCH_JOB = ForeignKind(
    "PyTorchJob", "kubeflow.org/v1", "pytorchjobs",
    {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": {"spec": {"containers": [_CONTAINER]}}}}},
    {"runPolicy": {"suspend": True}}, "Succeeded",
    PYTORCH_JOB_MODULE, PYTORCH_JOB_CRD,
)  # fmt: skip
KINDS = [JOB, STATEFUL_SET, JOB_SET, TRAIN_JOB, PYTORCH_JOB]
