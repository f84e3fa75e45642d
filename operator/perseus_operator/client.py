"""The one door to the Kubernetes API, and the only module that imports kubernetes: plain documents in and out.

Own objects are written by server-side apply under one field manager. Absence is an answer (None), not an exception; a
refusal carries the server's own sentence.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config
from perseus_api import names

from perseus_operator.memory import Memory
from perseus_operator.metrics import API_REFUSALS, API_REQUEST_SECONDS, API_WRITES
from perseus_operator.tracing import span

Document = dict[str, Any]
_TIMEOUT_SECONDS = 15.0
ATTEMPTS, PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 4, 0.1, 5.0
_REMEMBERED_WRITES = 20_000
_AWAY = (502, 503, 504)
_UNREADY = 503
# For how long after its start a server may be about to learn whom it serves; then its refusals count, ready or not.
_LEARNING_SECONDS = 30.0
_IN_TROUBLE = (500, *_AWAY)
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_METADATA_ALONE = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_METADATA_EVENTS = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_STREAM_SECONDS = 300


@dataclass(frozen=True)
class Kind:
    """A kind of object: where the API serves it."""

    api_version: str
    name: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of a collection, or of one object."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        middle = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
        return f"{root}{middle}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


PERSEUS_JOB = Kind(names.API_VERSION, names.KIND, names.PLURAL)
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE = Kind("v1", "Service", "services")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
NODE = Kind("v1", "Node", "nodes")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
JOB = Kind("batch/v1", "Job", "jobs")
ROLE = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
DAEMON_SET = Kind("apps/v1", "DaemonSet", "daemonsets")
KINDS = {
    kind.name: kind
    for kind in (PERSEUS_JOB, CONFIG_MAP, SERVICE, SERVICE_ACCOUNT, POD, JOB, ROLE, ROLE_BINDING, DEPLOYMENT)
}


class ApiRefusal(Exception):
    """The API server said no.

    Attributes:
        status: HTTP status.
        reason: Kubernetes' reason, such as Conflict.
        retry_after_seconds: how long the server asks to be left alone.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after_seconds: float = 0.0) -> None:
        """Keep the server's own words."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_final(self) -> bool:
        """Whether the same request will be refused again: the object itself is wrong."""
        # Server-side apply says of a value of the wrong type that it is the server's own error.
        return self.status in (400, 403, 422) or (self.status == 500 and "typed patch object" in str(self))


# What a request may end in.
API_TROUBLES = (ApiRefusal, aiohttp.ClientError, OSError, TimeoutError)


def is_away(error: Exception) -> bool:
    """Whether an error says that the API server, or what stands before it, is not there."""
    if isinstance(error, ApiRefusal):
        return error.status in _AWAY
    return isinstance(error, aiohttp.ClientConnectionError | TimeoutError)


class Api:
    """An open connection to the API server."""

    def __init__(self, api_client: client.ApiClient, field_manager: str) -> None:
        """Use `connect`."""
        self._client = api_client
        self._manager = field_manager
        self._written: Memory[tuple[str, str], bool] = Memory(_REMEMBERED_WRITES)
        self._unready_since: float | None = None

    @classmethod
    async def connect(cls, field_manager: str = names.FIELD_MANAGER_OPERATOR) -> Api:
        """Connect with the pod's credentials, or those of KUBECONFIG.

        Raises:
            kubernetes.aio.config.ConfigException: there are none.
        """
        try:
            config.load_incluster_config()
        except config.ConfigException:
            await config.load_kube_config()
        configuration = client.Configuration.get_default_copy()
        # aiohttp would look for a .netrc file, in a thread, at each request.
        configuration.client_session_kwargs = {"trust_env": bool(urllib.request.getproxies())}
        return cls(client.ApiClient(configuration), field_manager)

    def wrote(self, document: Document) -> bool:
        """Whether an object is exactly as this connection wrote it: an event of it tells nothing new."""
        metadata = document["metadata"]
        return self._written.get((metadata.get("uid", ""), metadata.get("resourceVersion", ""))) is not None

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Document | None:
        """Return an object, None if there is none.

        Raises:
            ApiRefusal: the server refused.
        """
        try:
            return await self._request("GET", kind.path(namespace, name))
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return None
            raise

    async def preferred_version(self, group: str) -> str | None:
        """Return the version of an API group that the server prefers, None if it does not serve the group.

        Raises:
            ApiRefusal: the server refused.
        """
        try:
            answer = await self._request("GET", f"/apis/{quote(group, safe='')}")
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return None
            raise
        return str((answer.get("preferredVersion") or {}).get("version") or "") or None

    async def find(self, kind: Kind, namespace: str, selector: str = "", field_selector: str = "") -> list[Document]:
        """Return the objects of a namespace ("" for all) that selectors of labels and fields choose.

        Raises:
            ApiRefusal: the server refused.
        """
        given = (("labelSelector", selector), ("fieldSelector", field_selector))
        query = [(name, value) for name, value in given if value]
        answer = await self._request("GET", kind.path(namespace), query=query)
        # null where metadata alone was asked for and nothing is there
        items: list[Document] = answer.get("items") or []
        return items

    async def find_metadata(self, kind: Kind) -> list[Document]:
        """Return name, labels and annotations of all objects of a kind, from the server's cache: a small answer.

        Raises:
            ApiRefusal: the server refused.
        """
        answer = await self._request("GET", kind.path(""), query=[("resourceVersion", "0")], accept=_METADATA_ALONE)
        # null where metadata alone was asked for and nothing is there
        items: list[Document] = answer.get("items") or []
        return items

    async def changes(self, kind: Kind, namespace: str, selector: str) -> AsyncIterator[Document]:
        """Yield watch events of objects' metadata, first of all that are there, until the server ends the stream.

        Raises:
            ApiRefusal: the server refused.
        """
        query = [("watch", "true"), ("labelSelector", selector), ("timeoutSeconds", str(_STREAM_SECONDS))]
        serialised = await self._client.param_serialize(
            "GET",
            kind.path(namespace),
            query_params=query,
            header_params={"Accept": _METADATA_EVENTS},
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*serialised, _request_timeout=_STREAM_SECONDS + _TIMEOUT_SECONDS)
        async with answer.response as response:
            if response.status >= 400:
                raise ApiRefusal(response.status, str(response.reason), (await response.text())[:500])
            async for line in response.content:
                event: Document = json.loads(line)
                if event["type"] == "ERROR":
                    told = event["object"]
                    raise ApiRefusal(int(told.get("code") or 0), str(told.get("reason")), str(told.get("message")))
                yield event

    async def apply(self, document: Document, subresource: str = "") -> Document:
        """Write an object by server-side apply, creating it if need be.

        Raises:
            ApiRefusal: the server refused.
        """
        kind = KINDS[document["kind"]]
        metadata = document["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"]) + (f"/{subresource}" if subresource else "")
        query = [("fieldManager", self._manager), ("force", "true")]
        API_WRITES.labels(kind=kind.name, verb="apply").inc()
        return await self._request("PATCH", path, query=query, body=document, content_type=_APPLY)

    async def merge(
        self, kind: Kind, namespace: str, name: str, patch: Document, subresource: str = ""
    ) -> Document | None:
        """Change fields of an object by merge patch; None if it is gone.

        Raises:
            ApiRefusal: the server refused.
        """
        path = kind.path(namespace, name) + (f"/{subresource}" if subresource else "")
        API_WRITES.labels(kind=kind.name, verb="patch").inc()
        try:
            return await self._request(
                "PATCH", path, query=[("fieldManager", self._manager)], body=patch, content_type=_MERGE
            )
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return None
            raise

    async def delete(self, kind: Kind, namespace: str, name: str, seen: Document | None = None) -> None:
        """Delete an object in the background, if it is still there (and still as it was seen).

        Raises:
            ApiRefusal: the server refused.
        """
        body: Document = {"propagationPolicy": "Background"}
        if seen is not None:
            body["preconditions"] = {key: seen["metadata"][key] for key in ("uid", "resourceVersion")}
        API_WRITES.labels(kind=kind.name, verb="delete").inc()
        try:
            await self._request("DELETE", kind.path(namespace, name), body=body)
        except ApiRefusal as refusal:
            if refusal.status not in (404, 409):
                raise

    async def create(self, kind: Kind, document: Document, dry_run: bool = False) -> Document:
        """Create an object, or ask whether it could be.

        Raises:
            ApiRefusal: the server refused.
        """
        API_WRITES.labels(kind=kind.name, verb="create").inc()
        query = [("dryRun", "All")] if dry_run else []
        return await self._request("POST", kind.path(document["metadata"]["namespace"]), query=query, body=document)

    async def _request(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        body: Document | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Document:
        """Make a request; a server that is busy or in trouble for a moment is asked again, if asking twice is harmless.

        Without this a visit of a dozen requests would hardly ever end while every third one is refused.
        """
        ask = partial(self._exchange, method, path, query, body, content_type, accept)
        for attempt in range(ATTEMPTS):
            pause = PAUSE_SECONDS * 2**attempt * (1 + random.random())  # noqa: S311 - spreads, hides nothing
            try:
                return await self._judged(ask)
            except ApiRefusal as refusal:
                harmless = refusal.status == 429 or (refusal.status in _IN_TROUBLE and method != "POST")
                harmless = harmless and not refusal.is_final
                if not harmless or attempt == ATTEMPTS - 1:
                    raise
                pause = max(pause, min(refusal.retry_after_seconds, LONGEST_PAUSE_SECONDS))
            except aiohttp.ClientError:
                self._unready_since = None
                if method == "POST" or attempt == ATTEMPTS - 1:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt ends in an answer or an error")

    async def _judged(self, ask: Callable[[], Awaitable[Document]]) -> Document:
        """Ask once, or again where nothing is yet decided.

        A server that has just started and not yet read its roles forbids everything: its absence, not its verdict.
        """
        try:
            return await ask()
        except ApiRefusal as refusal:
            if refusal.status != 403:
                raise
            if not await self._knows_its_roles():
                raise ApiRefusal(_UNREADY, "NotReady", f"the server is not ready: {refusal}") from refusal
        # Ready now, it may not have been so then.
        return await ask()

    async def _knows_its_roles(self) -> bool:
        """Whether the server that refuses is ready, or has had the time to become so."""
        try:
            await self._exchange("GET", "/readyz", None, None, "application/json", "*/*")
        except ApiRefusal:
            now = time.monotonic()
            self._unready_since = self._unready_since or now
            return now - self._unready_since > _LEARNING_SECONDS
        self._unready_since = None
        return True

    async def _exchange(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None,
        body: Document | None,
        content_type: str,
        accept: str,
    ) -> Document:
        serialised = await self._client.param_serialize(
            method,
            path,
            query_params=query or [],
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        begin = time.perf_counter()
        with span(f"{method} {path}"):
            response = await self._client.call_api(*serialised, _request_timeout=_TIMEOUT_SECONDS)
            data = await response.read()
        API_REQUEST_SECONDS.labels(verb=method).observe(time.perf_counter() - begin)
        try:
            answer: Document = json.loads(data) if data else {}
        except ValueError:
            answer = {"message": data[:500].decode(errors="replace")}
        if response.status >= 400:
            if response.status != 404:
                API_REFUSALS.labels(code=str(response.status)).inc()
            told = response.headers.get("Retry-After", "")
            wait = float(told) if told.isdigit() else 0.0
            raise ApiRefusal(response.status, str(answer.get("reason", "")), str(answer.get("message", "")), wait)
        if method == "PATCH":
            metadata = answer["metadata"]
            self._written.put((metadata["uid"], metadata["resourceVersion"]), True)
        return answer
