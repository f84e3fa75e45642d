"""Every name that more than one program, chart, dashboard or document uses.

A name is written once, here; charts, dashboards, alerts and docs are held against this module by a test.
Standard library only: the trainer library imports it.
"""

from __future__ import annotations

import hashlib
from typing import Final

GROUP: Final = "perseus.energy"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "PerseusJob"
PLURAL: Final = "perseusjobs"
SHORT_NAME: Final = "pjob"
FINALIZER: Final = f"{GROUP}/release-clocks"

# Labels and annotations.
LABEL_JOB: Final = f"{GROUP}/job"
LABEL_JOB_NAMESPACE: Final = f"{GROUP}/job-namespace"
LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
LABEL_DOCUMENT: Final = f"{GROUP}/document"  # value: one of the DOCUMENT_* kinds
# On a PerseusJob: which model it trains. On cached profiles: what they were measured on.
LABEL_MODEL: Final = f"{GROUP}/model"
LABEL_GPU_MODEL: Final = f"{GROUP}/gpu-model"
LABEL_DRIVER: Final = f"{GROUP}/driver"
LABEL_FINGERPRINT: Final = f"{GROUP}/fingerprint"
# On a node, before it slows down: a decimal ratio such as "1.2".
ANNOTATION_EXPECTED_SLOWDOWN: Final = f"{GROUP}/expected-slowdown"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
MANAGED_BY: Final = "perseus-operator"
LABEL_COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
LABEL_STATEFUL_SET_INDEX: Final = "apps.kubernetes.io/pod-index"
LABEL_JOB_SET: Final = "jobset.sigs.k8s.io/jobset-name"
LABEL_JOB_SET_REPLICAS: Final = "jobset.sigs.k8s.io/global-replicas"  # child Jobs of the whole JobSet
QUEUE_LABELS: Final = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")  # Kueue's, passed on
DOCUMENT_PLAN: Final = "plan"
DOCUMENT_FRONTIER: Final = "frontier"
DOCUMENT_PROFILE: Final = "profile"
DOCUMENT_REPORT: Final = "report"
DOCUMENT_ORDERS: Final = "orders"

# Field managers of server-side apply, one for each program.
FIELD_MANAGER_OPERATOR: Final = "perseus-operator"
FIELD_MANAGER_OPTIMISER: Final = "perseus-optimiser"

# Keys inside ConfigMaps.
PROFILE_CSV_KEY: Final = "profile.csv"
PROFILE_HEADER_KEY: Final = "header.json"
FRONTIER_KEY: Final = "frontier.json.gz"  # binaryData
PLAN_KEY: Final = "plan.json.gz"  # binaryData
REPORT_KEY: Final = "report.json"
ORDERS_KEY: Final = "orders.json.gz"  # binaryData
LEDGER_KEY: Final = "ledger.json.gz"  # binaryData

# The agent's page of measurements, on its metrics port, asked with ?namespace=NAMESPACE&job=NAME; with &orders=true it
# tells the orders that ranks run as well.
MEASUREMENTS_PATH: Final = "/measurements"

# Paths and environment of training pods.
SOCKET_FOLDER: Final = "/run/perseus"
SOCKET_PATH: Final = f"{SOCKET_FOLDER}/agent.sock"
JOURNAL_FOLDER: Final = "/var/lib/perseus"
POD_RESOURCES_FOLDER: Final = "/var/lib/kubelet/pod-resources"
ENV_SOCKET: Final = "PERSEUS_SOCKET"
ENV_JOB: Final = "PERSEUS_JOB"
ENV_NAMESPACE: Final = "PERSEUS_NAMESPACE"
ENV_STAGES: Final = "PERSEUS_STAGES"
ENV_PIPELINES: Final = "PERSEUS_PIPELINES"
ENV_TENSOR_PARALLEL: Final = "PERSEUS_TENSOR_PARALLEL"
ENV_MICROBATCHES: Final = "PERSEUS_MICROBATCHES"
ENV_SCHEDULE: Final = "PERSEUS_SCHEDULE"
ENV_CHUNKS: Final = "PERSEUS_CHUNKS"
ENV_RANK: Final = "PERSEUS_RANK"  # global rank; `perseus_api.ranks` says its place
ENV_RANK_ORDER: Final = "PERSEUS_RANK_ORDER"
ENV_TORCH_RANK: Final = "RANK"  # what torchrun and PyTorchJob set
ENV_TORCH_LOCAL_RANK: Final = "LOCAL_RANK"
ENV_GPU_UUID: Final = "PERSEUS_GPU_UUID"
ENV_VISIBLE_DEVICES: Final = "NVIDIA_VISIBLE_DEVICES"  # what the device plugin sets: the pod's GPU UUIDs
ENV_COORDINATOR: Final = "PERSEUS_COORDINATOR"  # host name of rank 0's pod

GPU_RESOURCE: Final = "nvidia.com/gpu"


def plan_config_map_name(namespace: str, name: str) -> str:
    """Return the name of a job's plan ConfigMap in the operator's namespace.

    Two jobs of one name in two namespaces never collide: the suffix hashes both names with a separator that neither
    may contain.
    """
    digest = hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:12]
    return f"plan-{name[:40].rstrip('-.')}-{digest}"


def profile_config_map_name(name: str) -> str:
    """Return the name of the ConfigMap of a job's own measured profile, beside the job."""
    return f"{name}-profile"


def frontier_config_map_name(name: str) -> str:
    """Return the name of a job's frontier ConfigMap, beside the job."""
    return f"{name}-frontier"


def report_config_map_name(name: str) -> str:
    """Return the name of the ConfigMap with a job's books and report, beside the job."""
    return f"{name}-report"


def orders_config_map_name(name: str) -> str:
    """Return the name of the ConfigMap of the orders that a job's ranks were seen to run, beside the job."""
    return f"{name}-orders"
