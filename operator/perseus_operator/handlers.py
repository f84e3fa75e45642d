"""What kopf watches for us, and the only module that imports it: events of jobs and of their children become visits.

Event handlers alone: kopf writes no finalizer, no progress and no last-seen configuration into anybody's objects, and
a restart writes nothing. What is to be done is decided in `reconcile`, from what is there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import aiohttp
import kopf
from perseus_api import names

from perseus_operator.client import Api, ApiRefusal
from perseus_operator.metrics import tell_version
from perseus_operator.monitor import Monitor
from perseus_operator.profiling.agents import Agents
from perseus_operator.prometheus import Prometheus
from perseus_operator.reconcile import Reconciler
from perseus_operator.settings import Settings
from perseus_operator.visits import JobKey, VisitQueue
from perseus_operator.web import serve_pages

SWEEP_SECONDS = 600.0
logger = logging.getLogger("perseus.operator")


class Operator:
    """The running parts, and kopf's handlers over them."""

    def __init__(self, settings: Settings) -> None:
        """Run with the chart's settings."""
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: VisitQueue | None = None
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
        kopf.on.event("v1", "configmaps", labels=own, registry=registry)(self._child_event)
        return registry

    async def _start(self, settings: kopf.OperatorSettings, **_: object) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        # A worker for each object, gone soon after its last event.
        settings.queueing.idle_timeout = 1.0
        settings.watching.server_timeout = 300
        settings.persistence.finalizer = f"{names.GROUP}/kopf"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP)
        tell_version()
        api = await Api.connect()
        session = aiohttp.ClientSession()
        queue_box: list[VisitQueue] = []
        monitor = Monitor(lambda key: queue_box[0].add(key))
        agents = Agents(api, self._settings.namespace)
        reconciler = Reconciler(api, self._settings, monitor, agents)
        self._queue = VisitQueue(reconciler.visit)
        queue_box.append(self._queue)
        pages = await serve_pages(self._settings.port)
        self._closers = [pages.cleanup, session.close, agents.close, api.close]
        self._tasks = [asyncio.create_task(self._queue.run()), asyncio.create_task(_sweep_forever(reconciler))]
        if self._settings.prometheus_url:
            prometheus = Prometheus(self._settings.prometheus_url, session)
            self._tasks.append(asyncio.create_task(monitor.run(prometheus)))
        for task in self._tasks:
            task.add_done_callback(_end_with)

    async def _stop(self, **_: object) -> None:
        for task in self._tasks:
            task.remove_done_callback(_end_with)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self._closers:
            await close()

    async def _job_event(self, name: str | None, namespace: str | None, **_: object) -> None:
        self._visit((namespace or "", name or ""))

    async def _child_event(self, labels: kopf.Labels, namespace: str | None, **_: object) -> None:
        # A plan lives in the operator's namespace and names its job's.
        home = labels.get(names.LABEL_JOB_NAMESPACE) or namespace or ""
        self._visit((home, labels[names.LABEL_JOB]))

    def _visit(self, key: JobKey) -> None:
        if self._queue is not None:
            self._queue.add(key)


def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)


async def _sweep_forever(reconciler: Reconciler) -> None:
    while True:
        try:
            await reconciler.sweep()
        except (ApiRefusal, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("looking for plans without a job: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


def _end_with(task: asyncio.Task[None]) -> None:
    """A part that ended has failed: end the process, so that the kubelet starts it anew."""
    if not task.cancelled():
        logger.critical("a part of the operator ended: %r", task.exception())
        raise SystemExit(1)


async def run_operator(settings: Settings) -> None:
    """Run until a signal ends kopf."""
    operator = Operator(settings)
    # kopf would look the user's name up, which a container need not have.
    identity: Any = socket.gethostname()
    await kopf.operator(registry=operator.registry(), clusterwide=True, standalone=True, identity=identity)
