"""Agents that measure a known device: their real page over real HTTP, what lies under them computed from a profile.

The pods of the job and of the agents are objects that a test writes, since no kubelet runs here.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any

from bare import SYSTEM, BareCluster
from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.measurements import BlockingRow, InstructionRow, NodeReport, RankOrder, RankReport
from perseus_simulator.testing import example_profile

CLOCKS = tuple(range(1410, 800, -15))
IMAGE = "registry/trainer@sha256:" + "1" * 64
ITERATION_SECONDS = 0.05
PIECE_BYTES = 1400
BLOCKING_WATTS = 80.0
_WITH_ORDERS = "&orders=true"
TRUTH = example_profile()


def cost(stage: int, instruction: Instruction, clock: int) -> tuple[float, float]:
    """Time goes with 1/clock, power falls faster; at the lowest clocks the energy rises."""
    fastest = TRUTH.measurements[stage, instruction][0].time_seconds
    seconds = fastest * 1410 / clock
    return seconds, seconds * (150 + 150 * (clock / 1410) ** 4)


class Agents:
    """One node's agent and the ranks of one job on it. Training goes on as the clock does."""

    def __init__(self, bare: BareCluster, namespace: str, job: str) -> None:
        """Serve; the ranks come with `train`."""
        self.bare, self.namespace, self.job = bare, namespace, job
        self.uid = ""
        self.pipelines = 0
        self.begun = time.time()
        self.asked = 0
        self.node = f"node-{namespace}-{job}"
        self.driver = "580"
        self.orders: list[RankOrder] = []
        self.strangers: dict[tuple[int, int], RankOrder] = {}
        self.mismatch = ""
        self.slowdown = 1.0  # of all that is measured
        self._lowest: dict[str, dict[int, int]] = {}
        pages = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.page(self.path)
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                # As a network brings it: in pieces, each some time after the other.
                for begin in range(0, len(body), PIECE_BYTES):
                    self.wfile.write(body[begin : begin + PIECE_BYTES])
                    time.sleep(0.01)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        labels = {names.LABEL_COMPONENT: "agent", "app.kubernetes.io/part-of": "perseus-operator"}
        ports = [{"name": "metrics", "containerPort": self._server.server_address[1]}]
        self._pod(SYSTEM, f"agent-{namespace}-{job}", labels, ports, {"phase": "Running", "podIP": "127.0.0.1"})

    def train(self, pipelines: int = 2, component: str = "trainer", image: str = IMAGE) -> None:
        """Let the pods of the job run: two stages of each pipeline."""
        found = self.bare.find("perseusjob", self.namespace, self.job)
        assert found is not None
        self.uid, self.pipelines, self.begun = found["metadata"]["uid"], pipelines, time.time()
        status = {"phase": "Running", "containerStatuses": [
            {"name": "main", "image": "trainer", "imageID": image, "ready": True, "restartCount": 0}
        ]}  # fmt: skip
        for rank in range(2 * pipelines):
            labels = {
                names.LABEL_JOB: self.job, names.LABEL_COMPONENT: component,
                names.LABEL_COMPLETION_INDEX: str(rank),
            }  # fmt: skip
            self._pod(self.namespace, f"{self.job}-{component}-{rank}", labels, [], status)

    def page(self, path: str) -> bytes:
        """What the agent answers: rows of every clock whose windows have begun."""
        wanted = f"{names.MEASUREMENTS_PATH}?namespace={self.namespace}&job={self.job}"
        if path.removesuffix(_WITH_ORDERS) != wanted:
            return b""
        with_orders = path.endswith(_WITH_ORDERS)
        self.asked += 1
        iteration = int((time.time() - self.begun) / ITERATION_SECONDS)
        plan = self.bare.plan(self.namespace, self.job)
        measurement, measured = "", {}
        if plan is not None and plan.sweep is not None:
            measurement = plan.sweep.measurement
            measured = self._lowest.setdefault(measurement, {})
            for window in plan.sweep.windows:
                if window.end <= iteration:
                    clock = plan.variants[window.variant].clocks[0][0]
                    measured[clock] = window.end
        return NodeReport(
            ranks=tuple(
                self._rank(pipeline, stage, iteration, measurement, tuple(measured)).model_copy(
                    update={"order": self._order(pipeline, stage) if with_orders else None}
                )
                for pipeline in range(self.pipelines)
                for stage in range(2)
            )
        ).encode()

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()

    def _order(self, pipeline: int, stage: int) -> RankOrder | None:
        """What a rank runs: what the test says, of all or of this one."""
        return self.strangers.get((pipeline, stage), self.orders[stage] if self.orders else None)

    def _rank(self, pipeline: int, stage: int, iteration: int, measurement: str, clocks: tuple[int, ...]) -> RankReport:
        rows = []
        order = self._order(pipeline, stage)
        chunks = sorted(set(order.chunks)) if order and order.chunks else [0]
        for clock in clocks:
            for instruction, chunk in product((Instruction.FORWARD, Instruction.BACKWARD), chunks):
                seconds, joules = (each * self.slowdown for each in cost(stage, instruction, clock))
                rows.append(
                    InstructionRow(
                        instruction=instruction, chunk=chunk, frequency_megahertz=clock, samples=20,
                        time_seconds=seconds, time_stderr=seconds / 1000, energy_joules=joules,
                        energy_stderr=joules / 500,
                    )
                )  # fmt: skip
        waits = [
            BlockingRow(frequency_megahertz=clock, seconds=1.0, watts=BLOCKING_WATTS, watts_stderr=0.5)
            for clock in clocks
        ]
        return RankReport(
            namespace=self.namespace, job=self.job, job_uid=self.uid, pipeline=pipeline, stage=stage, tensor_rank=0,
            gpu=f"GPU-{pipeline}-{stage}", gpu_model="Simulated A100", driver=self.driver, supported_clocks=CLOCKS,
            iteration=iteration,
            iteration_begin_seconds=self.begun + iteration * ITERATION_SECONDS,
            iteration_seconds=ITERATION_SECONDS if iteration else None,
            unlocked_iteration_seconds=ITERATION_SECONDS if iteration else None, connected=True,
            measurement=measurement, steady=True, sweep_iterations=10 if clocks else 0,
            sweep_seconds=10 * ITERATION_SECONDS * 1.05, longest_seconds=1.4 * ITERATION_SECONDS,
            rows=tuple(rows), blocking=tuple(waits), mismatch=self.mismatch,
        )  # fmt: skip

    def _pod(self, namespace: str, name: str, labels: Any, ports: Any, status: dict[str, Any]) -> None:
        container = {"name": "main", "image": "main", "ports": ports}
        self.bare.apply(
            namespace,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels},
                "spec": {"nodeName": self.node, "containers": [container]},
            },
        )
        patch = json.dumps({"status": status})
        self.bare.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
