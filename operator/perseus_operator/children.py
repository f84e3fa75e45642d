"""The child objects of a PerseusJob, as documents. Pure: equal jobs give equal documents.

Each carries the job's label and a hash of its own content, so that an object that is already right is not written
again; what can be changed behind the hash is compared field by field.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from perseus_api import names
from perseus_api.job import PerseusJobSpec
from perseus_api.schedules import JobSchedule
from perseus_planner import Pipeline

from perseus_operator.profiles import stamped
from perseus_operator.recording import Recorded
from perseus_operator.settings import Settings
from perseus_operator.shapes import pipeline_of_job

Document = dict[str, Any]
ANNOTATION_HASH = f"{names.GROUP}/content-hash"
ANNOTATION_TEMPLATE = f"{names.GROUP}/template-hash"  # of the user's template that a training Job was made from
COMPONENT_OPTIMISER, COMPONENT_TRAINER, COMPONENT_ACCOUNTS = "optimiser", "trainer", "accounts"
COMPONENT_PROFILER = "profiler"
ENV_SHAPE = "PERSEUS_SHAPE"
ENV_CHECKSUM = "PERSEUS_PROFILE_CHECKSUM"
ENV_FRONTIER = "PERSEUS_FRONTIER_CONFIG_MAP"
ENV_CORRECTIONS = "PERSEUS_PROFILE_CORRECTIONS"
CORRECTIONS_KEY, REPEATS_KEY = "corrections.json", "repeats.json"
PROFILE_FOLDER, ORDERS_FOLDER = "/profile", "/orders"
_BACKOFF_LIMIT = 100_000  # Training restarts as often as it must; its own policy decides when it has failed.
_KEEP_OPTIMISER_SECONDS = 3600


class TemplateProblem(ValueError):
    """The template does not fit the job's shape; the text says what to change."""


class Builder:
    """Makes the documents of one job."""

    def __init__(self, job: Document, spec: PerseusJobSpec, settings: Settings) -> None:
        """Build for a job as the API serves it."""
        metadata = job["metadata"]
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.uid: str = metadata["uid"]
        labels = metadata.get("labels") or {}
        self._queue_labels = {name: labels[name] for name in names.QUEUE_LABELS if name in labels}
        self._spec = spec
        self._settings = settings
        # Factors on the profile's times, as JSON; they live in the frontier's ConfigMap, beside what was made of them.
        self.corrections = ""
        self.repeats = ""  # measurements that drifts have asked for, as JSON, in the same place
        self.recorded: Recorded | None = None  # what the ranks were seen to run, where that is what is planned
        self.order_remark = ""

    @property
    def is_queued(self) -> bool:
        """Whether a queue's controller says when training may start."""
        return bool(self._queue_labels)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that is planned.

        Raises:
            ValueError: its order is not recorded yet.
        """
        if self.recorded is not None:
            return self.recorded.pipeline
        if self._spec.schedule is JobSchedule.RECORDED:
            raise ValueError("the order that the ranks run is not known yet")
        return pipeline_of_job(self._spec)

    @property
    def schedule(self) -> str:
        """The schedule as profiles name it: recorded orders are told apart."""
        name = self._spec.schedule.value
        return f"{name}:{self.recorded.digest}" if self.recorded else name

    def stamp(self, checksum: str) -> str:
        """Return what identifies a profile and, where they were recorded, the orders that it is planned with."""
        return stamped(checksum, self.recorded.digest if self.recorded else "")

    @property
    def optimiser_name(self) -> str:
        """Name of the optimisation pod's ServiceAccount, Role and RoleBinding."""
        return f"{self.name}-optimiser"

    def optimiser_job_name(self, checksum: str, target: str) -> str:
        """Name of the optimisation Job: another profile, shape or ConfigMap to fill is another Job."""
        content = f"{checksum} {target} {self._shape()} {self._settings.optimiser_image}"
        digest = hashlib.sha256(content.encode()).hexdigest()
        return f"{self.optimiser_name[:50]}-{digest[:8]}"

    @property
    def profiling_name(self) -> str:
        """Name of the Job and Service of profiling pods."""
        return f"{self.name}-profiling"

    @property
    def gpus_of_a_pod(self) -> int:
        """How many GPUs the template's containers ask for; 0 where their number makes no sense."""
        containers = (self._spec.template or {}).get("spec", {}).get("containers", [])
        limits = [((each.get("resources") or {}).get("limits") or {}).get(names.GPU_RESOURCE, 0) for each in containers]
        return sum(int(each) for each in limits) if all(str(each).isdecimal() for each in limits) else 0

    def frontier_config_map(self) -> Document:
        """Return the ConfigMap that the optimisation pod fills; its content is the pod's, not ours."""
        name = names.frontier_config_map_name(self.name)
        document = self._child("v1", "ConfigMap", name, COMPONENT_OPTIMISER)
        document["metadata"]["labels"][names.LABEL_DOCUMENT] = names.DOCUMENT_FRONTIER
        data = {CORRECTIONS_KEY: self.corrections, REPEATS_KEY: self.repeats}
        if any(data.values()):
            document["data"] = {key: each for key, each in data.items() if each}
        return _hashed(document)

    def optimiser_access(self) -> list[Document]:
        """Return the optimisation pod's ServiceAccount and the right to fill one ConfigMap."""
        group = "rbac.authorization.k8s.io"
        account = self._child("v1", "ServiceAccount", self.optimiser_name, COMPONENT_OPTIMISER)
        account["automountServiceAccountToken"] = False
        role = self._child(f"{group}/v1", "Role", self.optimiser_name, COMPONENT_OPTIMISER)
        role["rules"] = [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [names.frontier_config_map_name(self.name)],
                "verbs": ["patch"],
            }
        ]
        binding = self._child(f"{group}/v1", "RoleBinding", self.optimiser_name, COMPONENT_OPTIMISER)
        binding["roleRef"] = {"apiGroup": group, "kind": "Role", "name": self.optimiser_name}
        binding["subjects"] = [{"kind": "ServiceAccount", "name": self.optimiser_name, "namespace": self.namespace}]
        return [_hashed(each) for each in (account, role, binding)]

    def optimiser_job(self, checksum: str, target: str, profile: str) -> Document:
        """Return the optimisation Job for a profile in a ConfigMap, and for the UID of the ConfigMap that it fills."""
        document = self._child("batch/v1", "Job", self.optimiser_job_name(checksum, target), COMPONENT_OPTIMISER)
        container: Document = {
            "name": "optimiser",
            "image": self._settings.optimiser_image,
            "imagePullPolicy": self._settings.image_pull_policy,
            "command": ["perseus-optimiser"],
            "env": [
                {"name": ENV_SHAPE, "value": self._shape()},
                {"name": ENV_CHECKSUM, "value": checksum},
                {"name": ENV_FRONTIER, "value": names.frontier_config_map_name(self.name)},
                {"name": names.ENV_NAMESPACE, "value": self.namespace},
                *([{"name": ENV_CORRECTIONS, "value": self.corrections}] if self.corrections else []),
            ],
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {"name": "profile", "mountPath": PROFILE_FOLDER, "readOnly": True},
                {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108 - in the pod
            ],
        }
        volumes: list[Document] = [
            {"name": "profile", "configMap": {"name": profile}},
            {"name": "temporary", "emptyDir": {"sizeLimit": "64Mi"}},
        ]
        if self.recorded is not None:
            container["volumeMounts"].append({"name": "orders", "mountPath": ORDERS_FOLDER, "readOnly": True})
            volumes.append({"name": "orders", "configMap": {"name": names.orders_config_map_name(self.name)}})
        document["spec"] = {
            "backoffLimit": 2,
            "activeDeadlineSeconds": 3600,
            "ttlSecondsAfterFinished": _KEEP_OPTIMISER_SECONDS,
            "template": {
                "metadata": {"labels": self._labels(COMPONENT_OPTIMISER)},
                "spec": {
                    "restartPolicy": "Never",
                    "serviceAccountName": self.optimiser_name,
                    "automountServiceAccountToken": True,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        }
        if self._settings.image_pull_secrets:
            secrets = [{"name": each} for each in self._settings.image_pull_secrets]
            document["spec"]["template"]["spec"]["imagePullSecrets"] = secrets
        return _hashed(document)

    def profile_config_map(self, csv_text: str, header_text: str, facts: dict[str, str]) -> Document:
        """Return the ConfigMap of the profile that was measured for this job.

        Args:
            csv_text: its rows.
            header_text: its header.
            facts: annotations that tell how it was come by.
        """
        document = self._child("v1", "ConfigMap", names.profile_config_map_name(self.name), COMPONENT_PROFILER)
        document["metadata"]["labels"][names.LABEL_DOCUMENT] = names.DOCUMENT_PROFILE
        document["metadata"]["annotations"] = facts
        document["data"] = {names.PROFILE_CSV_KEY: csv_text, names.PROFILE_HEADER_KEY: header_text}
        return document

    def orders_config_map(self, encoded: str, facts: dict[str, str]) -> Document:
        """Return the ConfigMap of the orders that the ranks were seen to run.

        Args:
            encoded: them, in base64.
            facts: annotations that tell when.
        """
        document = self._child("v1", "ConfigMap", names.orders_config_map_name(self.name), COMPONENT_OPTIMISER)
        document["metadata"]["labels"][names.LABEL_DOCUMENT] = names.DOCUMENT_ORDERS
        document["metadata"]["annotations"] = facts
        document["binaryData"] = {names.ORDERS_KEY: encoded}
        return document

    def service(self, component: str = COMPONENT_TRAINER) -> Document:
        """Return the headless Service by whose names the ranks find each other."""
        document = self._child("v1", "Service", self._workload_name(component), component)
        document["spec"] = {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: self.name, names.LABEL_COMPONENT: component},
        }
        return _hashed(document)

    def workload(self, component: str = COMPONENT_TRAINER, expires: bool = False) -> Document:
        """Return the Indexed Job: the user's template, as many times as the ranks need GPUs.

        Args:
            component: the trainer's, or the profiler's: the same pods, of one pipeline alone.
            expires: whether it may go when its time to live is over.

        Raises:
            TemplateProblem: the ranks do not divide into such pods.
        """
        parallelism = self._spec.parallelism
        name = self._workload_name(component)
        pipelines = 1 if component == COMPONENT_PROFILER else parallelism.pipelines
        ranks, gpus = parallelism.ranks // parallelism.pipelines * pipelines, self.gpus_of_a_pod
        if gpus < 1 or ranks % gpus:
            raise TemplateProblem(
                f"spec.template asks for {gpus} {names.GPU_RESOURCE} a pod, and {ranks} ranks (stages x pipelines x "
                f"tensorParallel) do not divide into such pods; correct the limit of {names.GPU_RESOURCE}"
            )
        template = copy.deepcopy(self._spec.template or {})
        metadata = template.setdefault("metadata", {})
        metadata["labels"] = {
            **(metadata.get("labels") or {}),
            **self._labels(component),
            names.LABEL_JOB_UID: self.uid,
        }
        pod = template["spec"]
        pod.setdefault("restartPolicy", "Never")
        pod["subdomain"] = name
        for container in pod["containers"]:
            given = {each.get("name") for each in container.get("env") or []}
            added = [each for each in self._training_variables(name, pipelines) if each["name"] not in given]
            container["env"] = [*(container.get("env") or []), *added]
        document = self._child("batch/v1", "Job", name, component)
        document["metadata"]["labels"].update(self._queue_labels)
        document["spec"] = {
            "completionMode": "Indexed",
            "completions": ranks // gpus,
            "parallelism": ranks // gpus,
            "backoffLimit": _BACKOFF_LIMIT,
            "template": template,
        }
        if pod["restartPolicy"] == "Never":
            # Ranks fail together. Kubernetes counts the failures of a whole Job, and waits twice as long after each:
            # ten minutes after the seventh. By index, which it allows with this policy alone, they are one each.
            document["spec"]["backoffLimitPerIndex"] = _BACKOFF_LIMIT
        # In a queue, its controller says when training may start.
        if self._spec.suspend or not self._queue_labels:
            document["spec"]["suspend"] = self._spec.suspend
        if expires and self._spec.ttl_seconds_after_finished is not None:
            document["spec"]["ttlSecondsAfterFinished"] = self._spec.ttl_seconds_after_finished
        hashed = _hashed(document)
        hashed["metadata"]["annotations"][ANNOTATION_TEMPLATE] = _digest(self._spec.template)
        return hashed

    def plan_config_map(self, encoded: str) -> Document:
        """Return the plan's ConfigMap in the operator's namespace: removed by finalizer and sweep."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names.plan_config_map_name(self.namespace, self.name),
                "namespace": self._settings.namespace,
                "labels": {
                    names.LABEL_DOCUMENT: names.DOCUMENT_PLAN,
                    names.LABEL_JOB: self.name,
                    names.LABEL_JOB_NAMESPACE: self.namespace,
                    names.LABEL_JOB_UID: self.uid,
                    names.LABEL_MANAGED_BY: names.MANAGED_BY,
                },
            },
            "binaryData": {names.PLAN_KEY: encoded},
        }

    def _workload_name(self, component: str) -> str:
        return self.name if component == COMPONENT_TRAINER else self.profiling_name

    def report_config_map(self, report: str, ledger: str) -> Document:
        """Return the ConfigMap with the job's books (for the operator) and report (for people), owned by the job."""
        document = self._child("v1", "ConfigMap", names.report_config_map_name(self.name), COMPONENT_ACCOUNTS)
        document["metadata"]["labels"][names.LABEL_DOCUMENT] = names.DOCUMENT_REPORT
        document["data"] = {names.REPORT_KEY: report}
        document["binaryData"] = {names.LEDGER_KEY: ledger}
        return document

    def _training_variables(self, name: str, pipelines: int) -> list[Document]:
        parallelism = self._spec.parallelism
        index = f"metadata.labels['{names.LABEL_COMPLETION_INDEX}']"
        values = {
            names.ENV_STAGES: parallelism.stages,
            names.ENV_PIPELINES: pipelines,
            names.ENV_TENSOR_PARALLEL: parallelism.tensor_parallel,
            names.ENV_MICROBATCHES: parallelism.microbatches,
            names.ENV_RANK_ORDER: parallelism.rank_order.value,
            names.ENV_SCHEDULE: self._spec.schedule.value,
            names.ENV_CHUNKS: parallelism.chunks,
            names.ENV_COORDINATOR: f"{name}-0.{name}",
        }
        found: list[Document] = [{"name": name, "value": str(value)} for name, value in values.items()]
        if self.gpus_of_a_pod == 1:
            place = {"fieldRef": {"apiVersion": "v1", "fieldPath": index}}
            found.insert(0, {"name": names.ENV_RANK, "valueFrom": place})
        return found

    def _shape(self) -> str:
        pipeline = self.pipeline
        shape: Document = {
            "stages": pipeline.stages,
            "microbatches": pipeline.microbatches,
            "tensorParallel": pipeline.tensor_parallel,
            "schedule": pipeline.schedule.value,
        }
        # What is as it always was stands as it always did: by it an optimisation Job is named.
        if pipeline.chunks > 1:
            shape["chunks"] = pipeline.chunks
        if pipeline.v_shape:
            shape["vShape"] = True
        return json.dumps(shape, sort_keys=True)

    def _labels(self, component: str) -> dict[str, str]:
        return {
            names.LABEL_JOB: self.name,
            names.LABEL_COMPONENT: component,
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
        }

    def _child(self, api_version: str, kind: str, name: str, component: str) -> Document:
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": self._labels(component),
                "ownerReferences": [
                    {
                        "apiVersion": names.API_VERSION,
                        "kind": names.KIND,
                        "name": self.name,
                        "uid": self.uid,
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
        }


def changeable(job: Document, present: Document) -> Document:
    """Return what may be changed of a training Job that is there.

    Its pod template is nobody's to change any more, nor is how failures are counted. How many pods there are goes by
    the GPUs of each, so their number stays with the template that the Job was made from.
    """
    annotations = job["metadata"]["annotations"]
    kept = {"template", "backoffLimitPerIndex"}
    if template_of(present) not in (None, annotations.get(ANNOTATION_TEMPLATE)):
        kept |= {"completions", "parallelism"}
    spec = {key: each for key, each in job["spec"].items() if key not in kept}
    metadata = {"labels": job["metadata"]["labels"], "annotations": {ANNOTATION_HASH: annotations[ANNOTATION_HASH]}}
    return {"metadata": metadata, "spec": spec}


def is_up_to_date(wanted: Document, present: Document | None) -> bool:
    """Whether an object is there with the content that we would write, and nobody has changed it since."""
    if present is None or present["metadata"].get("deletionTimestamp"):
        return False
    annotations = present["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_HASH) != wanted["metadata"]["annotations"][ANNOTATION_HASH]:
        return False
    # The API server writes a pod template's quantities in other words.
    return contains(present, changeable(wanted, present) if wanted["kind"] == "Job" else wanted)


def is_owned_by(document: Document, uid: str) -> bool:
    """Whether an object is a child of this very job."""
    return any(each.get("uid") == uid for each in document["metadata"].get("ownerReferences") or [])


def contains(present: Any, wanted: Any) -> bool:
    """Whether an object holds what is wanted of it; what the API server or others add is theirs."""
    if isinstance(wanted, dict) and isinstance(present, dict):
        return all(key in present and contains(present[key], each) for key, each in wanted.items())
    if isinstance(wanted, list) and isinstance(present, list):
        return len(wanted) == len(present) and all(map(contains, present, wanted))
    return bool(wanted == present)


def template_of(job: Document) -> str | None:
    """Return the hash of the user's template that a training Job was made from; None of other Jobs."""
    found: str | None = (job["metadata"].get("annotations") or {}).get(ANNOTATION_TEMPLATE)
    return found


def _hashed(document: Document) -> Document:
    document["metadata"]["annotations"] = {ANNOTATION_HASH: _digest(document)}
    return document


def _digest(document: Any) -> str:
    content = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:32]
