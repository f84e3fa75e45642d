"""Pods and plans as the API tells them, kept by the cluster's watches and read by everybody else. No I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perseus_api import names
from perseus_api.ranks import MANY_PIPELINES, RankOrder, RankShape

_FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Pod:
    """What the agent needs of a pod of its node.

    Attributes:
        job: the PerseusJob that its label names, empty without one.
        index: its place among the workload's pods, None where its labels do not tell.
        shape: of the job's ranks, from the variables in the pod's own spec; None without.
    """

    uid: str
    namespace: str
    name: str
    phase: str
    job: str
    job_uid: str
    index: int | None
    shape: RankShape | None

    @property
    def is_finished(self) -> bool:
        """Whether its containers will never run again: what it owned is free."""
        return self.phase in _FINISHED

    @classmethod
    def of(cls, item: dict[str, Any]) -> Pod:
        """Read a pod of the API."""
        metadata = item["metadata"]
        labels = metadata.get("labels") or {}
        variables = {
            variable["name"]: variable.get("value", "")
            for container in item.get("spec", {}).get("containers", [])
            for variable in container.get("env") or []
        }
        return cls(
            uid=metadata["uid"],
            namespace=metadata["namespace"],
            name=metadata["name"],
            phase=(item.get("status") or {}).get("phase", ""),
            job=labels.get(names.LABEL_JOB, ""),
            job_uid=labels.get(names.LABEL_JOB_UID, ""),
            index=pod_index(labels),
            shape=_shape(variables),
        )


class PodTable:
    """The pods of this node, by UID."""

    def __init__(self) -> None:
        """Begin empty."""
        self._pods: dict[str, Pod] = {}
        self._changed = threading.Condition()
        self.on_gone: Callable[[Pod], None] = lambda _: None

    def put(self, pod: Pod) -> None:
        """Take a new or changed pod."""
        with self._changed:
            self._pods[pod.uid] = pod
            self._changed.notify_all()
        if pod.is_finished:
            self.on_gone(pod)

    def remove(self, uid: str) -> None:
        """Forget a deleted pod."""
        with self._changed:
            pod = self._pods.pop(uid, None)
        if pod is not None:
            self.on_gone(pod)

    def replace(self, pods: list[Pod]) -> None:
        """Take a whole listing: what is not in it is gone."""
        present = {pod.uid for pod in pods}
        with self._changed:
            gone = [uid for uid in self._pods if uid not in present]
        for pod in pods:
            self.put(pod)
        for uid in gone:
            self.remove(uid)

    def uids(self) -> set[str]:
        """Return the UIDs of all pods."""
        with self._changed:
            return set(self._pods)

    def jobs(self) -> set[tuple[str, str]]:
        """Return namespace and name of the PerseusJobs that pods which are not finished belong to by their label."""
        with self._changed:
            return {(pod.namespace, pod.job) for pod in self._pods.values() if pod.job and not pod.is_finished}

    def find(self, uid: str, timeout_seconds: float = 0.0) -> Pod | None:
        """Return a pod, waiting a little for one that the watch has not told yet."""
        with self._changed:
            self._changed.wait_for(lambda: uid in self._pods, timeout_seconds)
            return self._pods.get(uid)

    def by_name(self, namespace: str, name: str) -> Pod | None:
        """Return a pod by its name; the newest that is not finished, if an old one of the same name still shows."""
        with self._changed:
            found = [pod for pod in self._pods.values() if (pod.namespace, pod.name) == (namespace, name)]
        return min(found, key=lambda pod: pod.is_finished, default=None)


def pod_index(labels: Mapping[str, str]) -> int | None:
    """Return a pod's place among its workload's pods, as far as the labels of the usual kinds tell.

    Indexed Jobs and StatefulSets number their pods. A JobSet numbers those of each child Job: with several child Jobs
    the labels do not tell how many pods come before.
    """
    if labels.get(names.LABEL_JOB_SET) and labels.get(names.LABEL_JOB_SET_REPLICAS, "1") != "1":
        return None
    return _number(labels.get(names.LABEL_COMPLETION_INDEX) or labels.get(names.LABEL_STATEFUL_SET_INDEX))


def _shape(variables: Mapping[str, str]) -> RankShape | None:
    stages = _number(variables.get(names.ENV_STAGES))
    if stages is None:
        return None
    pipelines = _number(variables.get(names.ENV_PIPELINES)) or MANY_PIPELINES
    try:
        order = RankOrder(variables.get(names.ENV_RANK_ORDER) or RankOrder.PIPELINE_STAGE_TENSOR)
        return RankShape(stages, pipelines, _number(variables.get(names.ENV_TENSOR_PARALLEL)) or 1, order)
    except ValueError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and len(text) < 10 else None
