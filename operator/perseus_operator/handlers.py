"""What kopf watches for us, and the only module that imports it: events of jobs and of their children become visits.

Event handlers alone: kopf writes no finalizer, no progress and no last-seen configuration into anybody's objects, and
a restart writes nothing. What is to be done is decided in `reconcile`, from what is there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Any

import aiohttp
import kopf
from perseus_api import names

from perseus_operator import metrics
from perseus_operator.accounts import Accounts
from perseus_operator.backstop import Backstop
from perseus_operator.client import API_TROUBLES, CONFIG_MAP, Api, is_away
from perseus_operator.health import Health
from perseus_operator.monitor import Monitor
from perseus_operator.profiling.agents import Agents
from perseus_operator.prometheus import Prometheus
from perseus_operator.reconcile import Reconciler
from perseus_operator.scope import Scope, find_scope
from perseus_operator.settings import Settings
from perseus_operator.transport import Connection
from perseus_operator.visits import AWAY_SECONDS, JobKey, VisitQueue
from perseus_operator.web import serve_pages

# Changes of children come in bursts (pods of a Job become ready): one visit for each burst.
CHILD_SECONDS = 0.3
# Pauses between kopf's attempts at a request: ten minutes. Its own are over after 54 s, and the operator with them;
# but a restart brings no API server back, and a new process has to learn what this one knows.
RETRY_SECONDS = (1, 1, 2, 3, *(5,) * 120)
OWN_SELECTOR = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_JOB}"
logger = logging.getLogger("perseus.operator")


class _NothingToCompare(kopf.DiffBaseStorage):
    """kopf would copy and compare each object for handlers that we do not have."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        raise AssertionError("kopf stores nothing in anybody's objects")


class Operator:
    """The running parts, and kopf's handlers over them."""

    def __init__(self, settings: Settings, scope: Scope, health: Health) -> None:
        """Run with the chart's settings, and be asked for one's health."""
        self._settings = settings
        self._scope = scope
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: VisitQueue | None = None
        self._api: Api | None = None
        self._backstop: Backstop | None = None
        self._health = health
        self._closers: list[Any] = []

    def registry(self) -> kopf.OperatorRegistry:
        """Return kopf's registry with our handlers."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        kopf.on.startup(registry=registry)(self._start)
        kopf.on.cleanup(registry=registry)(self._stop)
        own: dict[str, Any] = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_JOB: kopf.PRESENT}
        kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(self._job_event)
        kopf.on.event("batch", "v1", "jobs", labels=own, registry=registry)(self._child_event)
        kopf.on.event("v1", "services", labels=own, registry=registry)(self._child_event)
        kopf.on.event("v1", "configmaps", labels=own, registry=registry)(self._child_event)
        return registry

    async def _start(self, settings: kopf.OperatorSettings, **_: object) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        # A worker for each object, gone soon after its last event.
        settings.queueing.idle_timeout = 1.0
        settings.watching.server_timeout = 300
        settings.networking.error_backoffs = RETRY_SECONDS
        # Where an API server takes requests and answers none, kopf would wait for minutes.
        settings.networking.connect_timeout, settings.networking.request_timeout = 10.0, 60.0
        settings.persistence.finalizer = f"{names.GROUP}/kopf"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
        settings.persistence.diffbase_storage = _NothingToCompare()
        # By namespace there is no right to watch namespaces and CRDs.
        settings.scanning.disabled = not self._scope.is_everywhere
        for kind in ("configmaps", "services", "jobs"):
            # The API server sends our own objects only, not every ConfigMap of the cluster.
            settings.watching.label_selectors[kind] = OWN_SELECTOR
        metrics.tell_version()
        api = self._api = await Api.connect()
        session = aiohttp.ClientSession()
        queue_box: list[VisitQueue] = []
        monitor = Monitor(lambda key: queue_box[0].add(key, urgent=True))
        accounts = Accounts(
            monitor.situation, lambda key: queue_box[0].add(key), enabled=bool(self._settings.prometheus.url)
        )
        agents = Agents(api, self._settings.namespace)
        reconciler = Reconciler(
            api, self._settings, self._scope, monitor, accounts, agents, lambda: queue_box[0].hurries()
        )
        self._queue = VisitQueue(reconciler.visit)
        queue_box.append(self._queue)
        self._backstop = Backstop(reconciler, self._queue)
        metrics.QUEUE_DEPTH.set_function(self._queue.depth)
        metrics.QUEUE_OVERDUE_SECONDS.set_function(self._queue.overdue_seconds)
        self._closers = [session.close, agents.close, api.close]
        if self._scope.is_everywhere:
            self._tasks.append(asyncio.create_task(monitor.sources.run_announcements(api)))
        elif self._settings.namespace not in self._scope.served:
            self._tasks.append(asyncio.create_task(self._watch_plans(api)))
        if self._settings.prometheus.url:
            connection = Connection(self._settings.prometheus, session)
            await monitor.look_first(connection)
            self._tasks.append(asyncio.create_task(monitor.run(connection)))
            self._tasks.append(asyncio.create_task(accounts.run(Prometheus(connection))))
            self._tasks.append(asyncio.create_task(monitor.sources.run_queries(connection)))
        self._tasks += [asyncio.create_task(self._queue.run()), asyncio.create_task(self._backstop.run())]
        self._health.begins(self._queue, self._backstop, self._scope)
        for task in self._tasks:
            task.add_done_callback(_end_with)

    async def _stop(self, **_: object) -> None:
        for task in self._tasks:
            task.remove_done_callback(_end_with)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self._closers:
            await close()

    async def _job_event(self, event: kopf.RawEvent, name: str | None, namespace: str | None, **_: object) -> None:
        key = (namespace or "", name or "")
        if self._backstop is not None:
            if event["type"] == "DELETED":
                self._backstop.told_gone(key)
            else:
                metadata: Any = event["object"]["metadata"]
                self._backstop.told(key, int(metadata.get("generation") or 0))
        self._visit(key, event, 0.0)

    async def _watch_plans(self, api: Api) -> None:
        """Where kopf does not watch the operator's own namespace: tell of the plans there."""
        home: Any = self._settings.namespace
        while True:
            try:
                async for event in api.changes(CONFIG_MAP, home, OWN_SELECTOR):
                    raw: Any = event
                    await self._child_event(raw, labels=event["object"]["metadata"]["labels"], namespace=home)
            except API_TROUBLES as error:
                logger.warning("watching plans: %s: %s", type(error).__name__, error)
            await asyncio.sleep(1.0)

    async def _child_event(self, event: kopf.RawEvent, labels: kopf.Labels, namespace: str | None, **_: object) -> None:
        # A plan lives in the operator's namespace and names its job's.
        home = labels.get(names.LABEL_JOB_NAMESPACE) or namespace or ""
        self._visit((home, labels[names.LABEL_JOB]), event, CHILD_SECONDS)

    def _visit(self, key: JobKey, event: kopf.RawEvent, delay_seconds: float) -> None:
        document: Any = event["object"]
        if self._queue is None or self._api is None or not self._scope.serves(key[0]):
            return
        held = self._settings.holds_jobs
        if event["type"] != "DELETED" and self._api.wrote(document) and _is_told(document, held):
            return
        self._queue.add(key, delay_seconds)


def _is_told(document: dict[str, Any], is_held: bool) -> bool:
    """Whether our write was the answer to everything before it: kopf hands on the last of several quick events only."""
    if document.get("kind") != names.KIND:
        return True
    metadata, status = document["metadata"], document.get("status") or {}
    done = (names.FINALIZER in (metadata.get("finalizers") or [])) == is_held and not metadata.get("deletionTimestamp")
    return bool(done and status.get("observedGeneration") == metadata.get("generation"))


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)


def _end_with(task: asyncio.Task[None]) -> None:
    """A part that ended has failed: end the process, so that the kubelet starts it anew."""
    if not task.cancelled():
        logger.critical("a part of the operator ended", exc_info=task.exception())
        raise SystemExit(1)


async def run_operator(settings: Settings) -> None:
    """Run until a signal ends kopf."""
    health = Health()
    # From the first moment: an API server that is away is no reason for the kubelet to start us anew.
    pages = await serve_pages(settings.port, health)
    try:
        scope = await _find_scope(settings) if settings.watch_namespaces else Scope()
        operator = Operator(settings, scope, health)
        # kopf would look the user's name up, which a container need not have.
        identity: Any = socket.gethostname()
        places: Any = {"clusterwide": True} if scope.is_everywhere else {"namespaces": scope.served}
        await kopf.operator(registry=operator.registry(), standalone=True, identity=identity, **places)
    finally:
        await pages.cleanup()


async def _find_scope(settings: Settings) -> Scope:
    api = await Api.connect()
    try:
        while True:
            try:
                return await find_scope(api, settings)
            except Exception as error:
                if not is_away(error):
                    raise
                logger.warning("no API server yet: %s: %s", type(error).__name__, error)
            await asyncio.sleep(AWAY_SECONDS)
    finally:
        await api.close()
