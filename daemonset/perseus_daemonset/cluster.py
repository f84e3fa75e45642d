"""The agent's eyes on the API server: the pods of its node, and the plans of their jobs.

Of the plans each is watched by its name, from the first pod of its job on this node to the last one, as the kubelet
watches ConfigMaps: an agent that watched all of them would hold a fleet's plans, and each new plan would be sent to
every node.
"""

from __future__ import annotations

import base64
import binascii
import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any

from kubernetes import client, config
from perseus_api import names

from perseus_daemonset.api_server import LIST_SECONDS, ApiServer, Item, listing
from perseus_daemonset.mirror import Mirror, brief
from perseus_daemonset.plans import JobKey, PlanStore
from perseus_daemonset.pods import Pod, PodTable
from perseus_daemonset.slices import SlicesUnavailable

logger = logging.getLogger("perseus.agent")


class ClusterWatch:
    """Keeps a pod table and a plan store true to the API."""

    def __init__(self, node: str, operator_namespace: str, pods: PodTable, plans: PlanStore) -> None:
        """Watch the pods of one node, and in the operator's namespace the plans of their jobs."""
        self._node = node
        self._namespace = operator_namespace
        self._pods = pods
        self._plans = plans
        self._mirror = Mirror("pods", self._get_pods, self._replace_pods, self._take_pod)
        self._followed: dict[JobKey, Mirror] = {}
        self._is_ready = False
        self._guard = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether the pods, and the plans of those that were there, were listed once."""
        if not self._is_ready and self._mirror.listed.is_set():
            with self._guard:
                self._is_ready = all(each.listed.is_set() for each in self._followed.values())
        return self._is_ready

    def start(self) -> None:
        """Begin to watch.

        Raises:
            kubernetes.config.ConfigException: there are no credentials.
        """
        self.connect()
        self._mirror.start()

    def connect(self) -> None:
        """Find the credentials.

        Raises:
            kubernetes.config.ConfigException: there are none.
        """
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()

    def count_pods(self) -> int:
        """Return how many pods this node has; raises as the client does."""
        return len(listing(self._get_pods)["items"])

    def count_plans(self) -> int:
        """Return how many plans there are; raises as the client does."""
        selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}"
        return len(listing(functools.partial(self._get_plans, labelSelector=selector))["items"])

    def resource_slices(self) -> list[Item]:
        """Return this node's ResourceSlices; none where the cluster has no dynamic resource allocation.

        Raises:
            SlicesUnavailable: the API server does not answer.
        """
        for version in ("v1", "v1beta1"):
            path = f"/apis/resource.k8s.io/{version}/resourceslices"
            try:
                found: list[Item] = listing(functools.partial(self._get_of_node, path))["items"]
                return found
            except client.ApiException as error:
                if error.status != 404:
                    raise SlicesUnavailable(f"ResourceSlices cannot be read: {brief(error)}") from None
            except Exception as error:  # noqa: BLE001 - urllib3's many ways to say that nobody answers
                raise SlicesUnavailable(f"ResourceSlices cannot be read: {brief(error)}") from None
        return []

    def stop(self) -> None:
        """Hand nothing on any more once this returns."""
        self._mirror.stop()
        with self._guard:
            followed = list(self._followed.values())
        for mirror in followed:
            mirror.stop()

    @functools.cached_property
    def _server(self) -> ApiServer:
        # Made when credentials are known, and once: each client has connections of its own.
        return ApiServer()

    def _get_of_node(self, path: str, timeout_seconds: float = LIST_SECONDS, **query: str) -> Any:
        return self._server.get(path, timeout_seconds, fieldSelector=f"spec.nodeName={self._node}", **query)

    def _get_pods(self, timeout_seconds: float = LIST_SECONDS, **query: str) -> Any:
        return self._get_of_node("/api/v1/pods", timeout_seconds, **query)

    def _get_plans(self, timeout_seconds: float = LIST_SECONDS, **query: str) -> Any:
        return self._server.get(f"/api/v1/namespaces/{self._namespace}/configmaps", timeout_seconds, **query)

    def _replace_pods(self, items: list[Item]) -> None:
        self._pods.replace([Pod.of(item) for item in items])
        self._follow()

    def _take_pod(self, kind: str, item: Item) -> None:
        if kind == "DELETED":
            self._pods.remove(item["metadata"]["uid"])
        else:
            self._pods.put(Pod.of(item))
        self._follow()

    def _follow(self) -> None:
        """Watch the plans of the jobs that have pods here, and no others. Called by the pods' thread alone."""
        wanted = self._pods.jobs()
        for key in self._followed.keys() - wanted:
            with self._guard:
                mirror = self._followed.pop(key)
            mirror.stop()
            self._plans.remove(names.plan_config_map_name(*key))
        for key in wanted - self._followed.keys():
            name = names.plan_config_map_name(*key)
            mirror = Mirror(
                f"the plan of {key[0]}/{key[1]}",
                functools.partial(self._get_plans, fieldSelector=f"metadata.name={name}"),
                functools.partial(self._replace_plan, name),
                self._take_plan,
            )
            with self._guard:
                self._followed[key] = mirror
            mirror.start()

    def _replace_plan(self, name: str, items: list[Item]) -> None:
        for item in items:
            self._take_plan("ADDED", item)
        if not items:
            self._plans.remove(name)

    def _take_plan(self, kind: str, item: Item) -> None:
        metadata = item["metadata"]
        labels = metadata.get("labels") or {}
        if kind == "DELETED" or labels.get(names.LABEL_DOCUMENT) != names.DOCUMENT_PLAN:
            self._plans.remove(metadata["name"])
            return
        encoded = (item.get("binaryData") or {}).get(names.PLAN_KEY)
        try:
            data = None if encoded is None else base64.b64decode(encoded, validate=True)
        except binascii.Error:
            data = b""
        claimed = (labels.get(names.LABEL_JOB_NAMESPACE, ""), labels.get(names.LABEL_JOB, ""))
        self._plans.put(metadata["name"], claimed, data)


class ClusterAccess:
    """Asks the API server once for each thing that the agent reads, for the doctor."""

    def __init__(self, node: str, operator_namespace: str) -> None:
        """Ask as the agent of a node."""
        self._watch = ClusterWatch(node, operator_namespace, PodTable(), PlanStore())

    def connect(self) -> str:
        """Find the credentials; return what is wrong, empty if nothing is."""
        try:
            self._watch.connect()
        except config.ConfigException as error:
            return f"there are no credentials ({brief(error)}): the agent's pod needs its ServiceAccount's token"
        return ""

    def probe(self) -> Iterator[tuple[str, str, str]]:
        """Return for each thing its name, what is wrong (empty if nothing), and what was seen."""
        for what, count in (
            ("pods of this node", self._watch.count_pods),
            ("plans", self._watch.count_plans),
            ("ResourceSlices", lambda: len(self._watch.resource_slices())),
        ):
            try:
                yield what, "", f"{count()} are listed"
            except client.ApiException as error:
                hint = "the chart's ClusterRole and Role give the right" if error.status in (401, 403) else ""
                yield what, f"the API server answers {error.status} {error.reason}: {hint or 'see its log'}", ""
            except Exception as error:  # noqa: BLE001 - urllib3's many ways to say that nobody answers
                yield what, f"the API server does not answer ({brief(error)}): see the node's network", ""
