"""Training that exists as metrics only: pipelines in real time under the plan in the cluster, exported as agents do.

It reads the plan as agents do (the ConfigMap in the operator's namespace), obeys its generation and first iteration,
and serves a metrics page to a real Prometheus. Slowdowns, reasons and lies are the test's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from perseus_api.plan import Plan
from perseus_operator.planning import planned_seconds

STAGES, PIPELINES = 2, 2


def labels(**values: object) -> str:
    """Labels as the exposition format wants them."""

    def escaped(value: object) -> str:
        return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in values.items()) + "}"


@dataclass
class Training:
    """A job of two pipelines of two stages.

    Attributes:
        namespace: of the job.
        job: its name.
        read_plan: returns the plan in the cluster.
        slowdowns: by pipeline, what its instructions take longer.
        gaps: by pipeline, seconds lost between instructions in each iteration.
        reasons: clock event reasons by (pipeline, stage).
        clock_offsets: of the pipelines' nodes.
        stopped: whether iterations go on.
        silent_stages: whose pods cannot be scraped.
    """

    namespace: str
    job: str
    read_plan: Callable[[], Plan | None]
    slowdowns: dict[int, float] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)
    reasons: dict[tuple[int, int], str] = field(default_factory=dict)
    clock_offsets: dict[int, float] = field(default_factory=dict)
    stopped: bool = False
    silent_stages: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin with iteration 0."""
        self.iteration = 0
        self.accepted: Plan | None = None
        self.active: Plan | None = None
        self.seconds: dict[int, float] = {}
        self.begin = time.time()
        self._ends: dict[int, float] = {}
        self._compared = dict.fromkeys(((p, s) for p in range(PIPELINES) for s in range(STAGES)), 0.0)
        self._expected = dict(self._compared)
        self._plan_read = 0.0

    def step(self) -> None:
        """Go on to now."""
        now = time.time()
        if now - self._plan_read > 0.4:
            self._plan_read = now
            self.accepted = self.read_plan() or self.accepted
        if self.stopped:
            return
        if not self._ends:
            self._begin_iteration(now)
        for index, end in self._ends.items():
            if end <= now:
                self.seconds[index] = end - self.begin
        if all(end <= now for end in self._ends.values()):
            for pipeline, stage in self._compared:
                expected = 0.5
                slow = self.slowdowns.get(pipeline, 1.0) if stage == STAGES - 1 else 1.0
                self._expected[pipeline, stage] += expected
                self._compared[pipeline, stage] += expected * slow
            self.iteration += 1
            self._begin_iteration(max(self._ends.values()))

    def _begin_iteration(self, begin: float) -> None:
        if self.accepted is not None and self.iteration >= self.accepted.first_iteration:
            self.active = self.accepted
        self.begin = begin
        for index in range(PIPELINES):
            planned = planned_seconds(self.active, index) if self.active else 0.81
            took = planned * self.slowdowns.get(index, 1.0) + self.gaps.get(index, 0.0)
            # Real iterations differ by a little.
            self._ends[index] = begin + took * (1 + 0.0005 * (self.iteration % 3))

    def render(self) -> list[str]:
        """The metrics page's lines."""
        found = []
        for pipeline in range(PIPELINES):
            own = labels(namespace=self.namespace, job=self.job, pipeline=pipeline, pod=f"{self.job}-{pipeline * 2}")
            begin = self.begin + self.clock_offsets.get(pipeline, 0.0)
            if 0 not in self.silent_stages:
                found.append(f"perseus_pipeline_iteration{own} {self.iteration}")
                found.append(f"perseus_pipeline_iteration_begin_timestamp_seconds{own} {begin!r}")
                if pipeline in self.seconds:
                    found.append(f"perseus_pipeline_seconds{own} {self.seconds[pipeline]!r}")
            for stage in sorted({*range(STAGES)} - self.silent_stages):
                rank = {
                    "namespace": self.namespace, "job": self.job, "pipeline": pipeline, "stage": stage,
                    "tensor_rank": 0, "pod": f"{self.job}-{pipeline * 2 + stage}", "gpu": f"GPU-{pipeline}{stage}",
                }  # fmt: skip
                accepted = self.accepted.generation if self.accepted else 0
                active = self.active.generation if self.active else 0
                found.append(f"perseus_plan_generation_accepted{labels(**rank)} {accepted}")
                found.append(f"perseus_plan_generation_active{labels(**rank)} {active}")
                each = labels(**rank, instruction="forward")
                compared, expected = self._compared[pipeline, stage], self._expected[pipeline, stage]
                found.append(f"perseus_instruction_compared_seconds_total{each} {compared!r}")
                found.append(f"perseus_instruction_expected_seconds_total{each} {expected!r}")
                reason = self.reasons.get((pipeline, stage))
                if reason:
                    found.append(f"perseus_gpu_clock_event_active{labels(**rank, reason=reason)} 1")
        return found


class MetricsPage:
    """Serves the pages of trainings, and lines of the test's own.

    Attributes:
        trainings: whose pages these are.
        lines: the test's own.
    """

    def __init__(self, port: int) -> None:
        """Serve on loopback."""
        self.port = port
        self.trainings: list[Training] = []
        self.lines: list[str] = []
        self._ending = threading.Event()
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines = [line for each in page.trainings for line in each.render()] + page.lines
                lines.append('perseus_agent_build_info{node="node",version="0"} 1')
                body = ("\n".join(lines) + "\n").encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, daemon=True),
            threading.Thread(target=self._train, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    def _train(self) -> None:
        while not self._ending.wait(0.02):
            for each in self.trainings:
                each.step()
