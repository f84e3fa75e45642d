"""Training as Prometheus sees it: stands in for agents and trainers of many jobs, by the same rules and metric names.

It watches the plan ConfigMaps as agents do and changes clocks by the agents' rule (`docs/architecture.md`): at the
begin of an iteration the newest plan whose first iteration is reached becomes active. An iteration takes as long as its
slowest pipeline, and a pipeline takes as long as its plan predicts, times the slowdown that a scenario gives it.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from perseus_api import names
from perseus_api.plan import Plan
from perseus_operator.planning import planned_seconds

from harness.controlplane import SYSTEM, ControlPlane

JobKey = tuple[str, str]
_SERIES = (
    "perseus_pipeline_seconds", "perseus_pipeline_iteration", "perseus_pipeline_iteration_begin_timestamp_seconds",
    "perseus_plan_generation_accepted", "perseus_plan_generation_active",
)  # fmt: skip


@dataclass
class Run:
    """The training of one job, brought up to the time whenever somebody looks at it or changes something.

    Attributes:
        pipelines: how many.
        ranks: how many report.
        unlocked_seconds: pipeline time without a plan.
        slowdown: by pipeline.
        iteration: index of the one that runs.
        begin: wall-clock time at which it began.
        plan: active.
        held: newest accepted.
        last: by pipeline, seconds of the last finished iteration.
        seen: by generation, wall-clock time at which it was accepted.
        now: by pipeline, seconds that the running iteration takes.
    """

    pipelines: int
    ranks: int
    unlocked_seconds: float
    slowdown: dict[int, float] = field(default_factory=dict)
    iteration: int = 0
    begin: float = 0.0
    plan: Plan | None = None
    held: Plan | None = None
    last: dict[int, float] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    now: dict[int, float] = field(default_factory=dict)

    def begin_iteration(self, wall: float) -> None:
        """Begin the next iteration: the moment at which a plan changes."""
        self.begin = wall
        if self.held is None or self.held.first_iteration <= self.iteration:
            self.plan = self.held
        # Two real iterations never take the same time to a nanosecond.
        jitter = 1 + 0.0003 * (self.iteration % 3)
        self.now = {
            index: (planned_seconds(self.plan, index) if self.plan else self.unlocked_seconds)
            * self.slowdown.get(index, 1.0)
            * jitter
            for index in range(self.pipelines)
        }

    def advance(self, wall: float) -> None:
        """Bring it up to a time."""
        while self.now and wall >= self.begin + max(self.now.values()):
            end = self.begin + max(self.now.values())
            self.last = dict(self.now)
            self.iteration += 1
            self.begin_iteration(end)


class Training:
    """Runs of many jobs, and the page that Prometheus scrapes.

    Attributes:
        port: of the page.
    """

    def __init__(self, plane: ControlPlane) -> None:
        """Obey the plans of a control plane."""
        self._plane = plane
        self._runs: dict[JobKey, Run] = {}
        self._plans: dict[JobKey, Plan] = {}
        self._history: dict[JobKey, list[Plan]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        training = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = training.page().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # Prometheus's patience is one interval.
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._threads = [
            threading.Thread(target=each, name="training", daemon=True)
            for each in (self._server.serve_forever, self._watch)
        ]

    def __enter__(self) -> Training:
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def begin(self, key: JobKey, pipelines: int, ranks: int, unlocked_seconds: float) -> None:
        """A job's ranks start to train."""
        with self._lock:
            run = self._runs[key] = Run(pipelines, ranks, unlocked_seconds)
            run.held = self._plans.get(key)
            run.begin_iteration(time.time())

    def end(self, key: JobKey) -> None:
        """A job trains no more."""
        with self._lock:
            self._runs.pop(key, None)

    def slow_down(self, keys: Iterable[JobKey], pipeline: int, factor: float) -> None:
        """Let a pipeline of each job take so many times as long, from its next iteration on."""
        wall = time.time()
        with self._lock:
            for key in keys:
                self._runs[key].advance(wall)
                self._runs[key].slowdown[pipeline] = factor

    def generation(self, key: JobKey) -> int:
        """Return the newest generation that a job's agents hold; 0 without one."""
        with self._lock:
            plan = self._plans.get(key)
        return plan.generation if plan else 0

    def active_generation(self, key: JobKey) -> int:
        """Return the generation that sets a job's clocks; 0 without one."""
        with self._lock:
            run = self._runs[key]
            run.advance(time.time())
            return run.plan.generation if run.plan else 0

    def iteration(self, key: JobKey) -> int:
        """Return the iteration that a job is in."""
        with self._lock:
            self._runs[key].advance(time.time())
            return self._runs[key].iteration

    def history(self, key: JobKey) -> list[Plan]:
        """Return the plans that reached a job's agents, in order."""
        with self._lock:
            return list(self._history.get(key, []))

    def seen_at(self, key: JobKey, generation: int) -> float | None:
        """Return the wall-clock time at which a generation reached a job's agents."""
        with self._lock:
            return self._runs[key].seen.get(generation)

    def page(self) -> str:
        """Return the metrics of all agents."""
        lines: dict[str, list[str]] = {name: [f"# TYPE {name} gauge"] for name in _SERIES}
        wall = time.time()
        with self._lock:
            for (namespace, job), run in self._runs.items():
                run.advance(wall)
                named = f'namespace="{namespace}",job="{job}"'
                for index in range(run.pipelines):
                    labels = f'{{{named},pipeline="{index}",pod="{job}-{index}"}}'
                    if index in run.last:
                        lines[_SERIES[0]].append(f"{_SERIES[0]}{labels} {run.last[index]!r}")
                    lines[_SERIES[1]].append(f"{_SERIES[1]}{labels} {run.iteration}")
                    lines[_SERIES[2]].append(f"{_SERIES[2]}{labels} {run.begin!r}")
                held, plan = run.held, run.plan
                for rank in range(run.ranks):
                    labels = f'{{{named},stage="{rank}",pod="{job}-{rank}"}}'
                    lines[_SERIES[3]].append(f"{_SERIES[3]}{labels} {held.generation if held else 0}")
                    lines[_SERIES[4]].append(f"{_SERIES[4]}{labels} {plan.generation if plan else 0}")
        agent = ['perseus_agent_build_info{node="node",version="0"} 1']
        return "\n".join(line for each in (agent, *lines.values()) for line in each) + "\n"

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._watch_once()
            except (OSError, http.client.HTTPException, ValueError):
                # Agents keep the plans that they have while the API server is away.
                self._stopped.wait(0.2)

    def _watch_once(self) -> None:
        root = f"/api/v1/namespaces/{SYSTEM}/configmaps?labelSelector={names.LABEL_DOCUMENT}%3D{names.DOCUMENT_PLAN}"
        host, port = self._plane.url.removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=str(self._plane.certificate))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        headers = {"Authorization": "Bearer token", "Accept": "application/json"}
        connection = http.client.HTTPSConnection(host, int(port), timeout=60, context=context)
        try:
            connection.request("GET", root, headers=headers)
            listed = json.loads(connection.getresponse().read())
            present = {_key(each) for each in listed["items"]}
            for each in listed["items"]:
                self._accept(each)
            for key in set(self._plans) - present:
                self._withdraw(key)
            version = listed["metadata"]["resourceVersion"]
            connection.request("GET", f"{root}&watch=true&resourceVersion={version}&timeoutSeconds=50", headers=headers)
            for line in connection.getresponse():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] == "DELETED":
                    self._withdraw(_key(event["object"]))
                else:
                    self._accept(event["object"])
        finally:
            connection.close()

    def _accept(self, config_map: dict[str, Any]) -> None:
        plan = Plan.decode(base64.b64decode(config_map["binaryData"][names.PLAN_KEY]))
        key, wall = _key(config_map), time.time()
        with self._lock:
            known = self._plans.get(key)
            if known is not None and known.job == plan.job and known.generation >= plan.generation:
                return
            self._plans[key] = plan
            self._history.setdefault(key, []).append(plan)
            run = self._runs.get(key)
            if run is not None:
                run.advance(wall)
                run.held = plan
                run.seen[plan.generation] = wall

    def _withdraw(self, key: JobKey) -> None:
        with self._lock:
            self._plans.pop(key, None)
            run = self._runs.get(key)
            if run is not None:
                run.advance(time.time())
                run.held = None


def _key(config_map: dict[str, Any]) -> JobKey:
    labels = config_map["metadata"]["labels"]
    return labels[names.LABEL_JOB_NAMESPACE], labels[names.LABEL_JOB]
