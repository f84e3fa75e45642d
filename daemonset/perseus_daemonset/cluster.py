"""The agent's eyes on the API server, and the only module that imports kubernetes: its node's pods, and plans.

Two watches, each in a thread: list, then watch from there, list again after any break. When the API is gone
everything stays as it
was: a plan in force goes on, no clock changes because of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes import client, config, watch
from perseus_api import names

from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pods import Pod, PodTable
from perseus_daemonset.slices import SlicesUnavailable

WATCH_SECONDS = 300
RETRY_SECONDS = 1.0
logger = logging.getLogger("perseus.agent")


class ClusterWatch:
    """Keeps a pod table and a plan store true to the API."""

    def __init__(self, node: str, operator_namespace: str, pods: PodTable, plans: PlanStore) -> None:
        """Watch the pods of one node, and the plans in the operator's namespace."""
        self._node = node
        self._namespace = operator_namespace
        self._pods = pods
        self._plans = plans
        self._stopped = threading.Event()
        self._listed = {"pods": threading.Event(), "plans": threading.Event()}

    @property
    def ready(self) -> bool:
        """Whether everything was listed once."""
        return all(event.is_set() for event in self._listed.values())

    def start(self) -> None:
        """Begin to watch.

        Raises:
            kubernetes.config.ConfigException: there are no credentials.
        """
        self.connect()
        for name, run in (("pods", self._watch_pods), ("plans", self._watch_plans)):
            threading.Thread(target=self._forever, args=(name, run), name=f"watch-{name}", daemon=True).start()

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
        selector = f"spec.nodeName={self._node}"
        return len(self._list(client.CoreV1Api().list_pod_for_all_namespaces, field_selector=selector)["items"])

    def count_plans(self) -> int:
        """Return how many plans there are; raises as the client does."""
        selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}"
        call = client.CoreV1Api().list_namespaced_config_map
        return len(self._list(call, self._namespace, label_selector=selector)["items"])

    def resource_slices(self) -> list[dict[str, Any]]:
        """Return this node's ResourceSlices; none where the cluster has no dynamic resource allocation.

        Raises:
            SlicesUnavailable: the API server does not answer.
        """
        for api in (client.ResourceV1Api(), client.ResourceV1beta1Api()):
            try:
                listed = self._list(api.list_resource_slice, field_selector=f"spec.nodeName={self._node}")
                found: list[dict[str, Any]] = listed["items"]
                return found
            except client.ApiException as error:
                if error.status != 404:
                    raise SlicesUnavailable(f"ResourceSlices cannot be read: {_brief(error)}") from None
            except Exception as error:  # noqa: BLE001 - urllib3's many ways to say that nobody answers
                raise SlicesUnavailable(f"ResourceSlices cannot be read: {_brief(error)}") from None
        return []

    def stop(self) -> None:
        """Stop after the current event."""
        self._stopped.set()

    def _forever(self, name: str, run: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                run()
            except Exception as error:  # noqa: BLE001 - whatever breaks a watch, the answer is a new one
                logger.warning("watching %s broke (%s); everything stays as it is", name, _brief(error))
                self._stopped.wait(RETRY_SECONDS)

    def _watch_pods(self) -> None:
        api = client.CoreV1Api()
        selector = f"spec.nodeName={self._node}"
        listed = self._list(api.list_pod_for_all_namespaces, field_selector=selector)
        self._pods.replace([Pod.of(item) for item in listed["items"]])
        self._listed["pods"].set()
        for kind, item in self._events(api.list_pod_for_all_namespaces, listed, field_selector=selector):
            if kind == "DELETED":
                self._pods.remove(item["metadata"]["uid"])
            else:
                self._pods.put(Pod.of(item))

    def _watch_plans(self) -> None:
        api = client.CoreV1Api()
        selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}"
        listed = self._list(api.list_namespaced_config_map, self._namespace, label_selector=selector)
        for item in listed["items"]:
            self._take_plan(item)
        self._plans.replace({item["metadata"]["name"] for item in listed["items"]})
        self._listed["plans"].set()
        for kind, item in self._events(
            api.list_namespaced_config_map, listed, self._namespace, label_selector=selector
        ):
            if kind == "DELETED":
                self._plans.remove(item["metadata"]["name"])
            else:
                self._take_plan(item)

    def _take_plan(self, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        labels = metadata.get("labels") or {}
        encoded = (item.get("binaryData") or {}).get(names.PLAN_KEY)
        try:
            data = None if encoded is None else base64.b64decode(encoded, validate=True)
        except binascii.Error:
            data = b""
        claimed = (labels.get(names.LABEL_JOB_NAMESPACE, ""), labels.get(names.LABEL_JOB, ""))
        self._plans.put(metadata["name"], claimed, data)

    def _list(self, call: Callable[..., Any], *arguments: str, **selectors: str) -> dict[str, Any]:
        answer = call(*arguments, **selectors, _preload_content=False, _request_timeout=30)
        listed: dict[str, Any] = json.loads(answer.data)
        return listed

    def _events(self, call: Callable[..., Any], listed: dict[str, Any], *arguments: str, **selectors: str) -> Any:
        stream = watch.Watch().stream(
            call,
            *arguments,
            **selectors,
            resource_version=listed["metadata"]["resourceVersion"],
            timeout_seconds=WATCH_SECONDS,
            _request_timeout=WATCH_SECONDS + 30,
        )
        for event in stream:
            if self._stopped.is_set():
                return
            yield event["type"], event["raw_object"]


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
            return f"there are no credentials ({_brief(error)}): the agent's pod needs its ServiceAccount's token"
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
                yield what, f"the API server does not answer ({_brief(error)}): see the node's network", ""


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
