"""Every panel shows data of a run of processes: operator, agent, trainers on simulated GPUs, under a real Prometheus.

Like the demonstration, without a kubelet: the API server is real and bare, the test plays the optimisation pod, and
carries pods and plans to the agent. A GPU gets slow in the middle, so that there is a straggler to show.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import *  # noqa: F403
from perseus_simulator.testing import example_profile, simulator_environment
from perseus_simulator.workload.placement import ENV_PEER_ADDRESSES

from demo.panels import DASHBOARDS, Window, ask_panel, load_dashboard
from demo.pictures import draw_dashboard
from harness.controlplane import SYSTEM, free_port, running
from harness.objects import MICROBATCHES, PIPELINES, STAGES, frontier_data, perseus_job, profile_config_map
from harness.operator import OperatorProcess
from harness.prometheus_server import PrometheusServer

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
from agent_process import PLAN_NAME, AgentProcess, Kubelet, uid

pytestmark = pytest.mark.cluster
NAMESPACE, JOB, RANKS = "research", "gpt", STAGES * PIPELINES
PLANNED_SECONDS, STRAGGLER_SECONDS, RECOVERED_SECONDS = 30.0, 300.0, 20.0
SLOWDOWN = 1.4
NAMES = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
SOURCES = [
    (name, each.get("title") or f"annotation {each['name']}", each)
    for name in NAMES
    for dashboard in [load_dashboard(name)]
    for each in [*dashboard["panels"], *(dashboard.get("annotations") or {}).get("list", [])]
]


def until(what: str, condition: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def serve_metrics(agent: AgentProcess, lock: threading.Lock) -> ThreadingHTTPServer:
    """The agent's own page, over HTTP."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                body = agent.counters()["metrics"].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def watching(folder: Path, agent_port: int, operator_port: int) -> PrometheusServer:
    server = PrometheusServer(folder / "prometheus", free_port(), agent_port, scrape_seconds=2.0)
    server.targets = {
        agent_port: {"namespace": SYSTEM, "pod": "perseus-agent-a", "node": "node-1"},
        operator_port: {"namespace": SYSTEM, "pod": "perseus-operator-a"},
    }
    return server


def start_trainers(node: SimulatedNode, agent: AgentProcess) -> list[subprocess.Popen[bytes]]:
    """A process for each rank; the agent is told of its pod before it connects."""
    held = [socket.create_server(("", 0)) for _ in range(RANKS)]
    addresses = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in held)
    for each in held:
        each.close()
    started = []
    for rank in range(RANKS):
        environment = {
            **simulator_environment(node),
            names.ENV_JOB: JOB,
            names.ENV_NAMESPACE: NAMESPACE,
            names.ENV_RANK: str(rank),
            names.ENV_STAGES: str(STAGES),
            names.ENV_PIPELINES: str(PIPELINES),
            names.ENV_MICROBATCHES: str(MICROBATCHES),
            names.ENV_VISIBLE_DEVICES: node.gpus[rank].uuid,
            names.ENV_SOCKET: str(agent.path),
            ENV_PEER_ADDRESSES: addresses,
        }
        train = f'read go; exec "{sys.executable}" -m perseus_simulator.main train'
        process = subprocess.Popen(
            ["sh", "-c", train], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        agent.is_in_pod(process.pid, uid(rank))
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        started.append(process)
    return started


@pytest.fixture(scope="module")
def run(simulator_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Window]]:
    """A run of a few minutes; Prometheus's address, and the run's time."""
    folder = tmp_path_factory.mktemp("run")
    node = SimulatedNode.create(folder / "node", example_profile(STAGES), RANKS)
    kubelet = Kubelet(folder)
    kubelet.devices = [(f"{JOB}-{rank}", "nvidia.com/gpu", node.gpus[rank].uuid) for rank in range(RANKS)]
    agent, lock, stopped = AgentProcess(folder, simulator_environment(node)), threading.Lock(), threading.Event()
    agent.start()
    page = serve_metrics(agent, lock)
    operator_port = free_port()
    prometheus = watching(folder, page.server_port, operator_port)
    prometheus.start()
    trainers: list[subprocess.Popen[bytes]] = []
    with running(tmp_path_factory.mktemp("plane")) as plane:
        operator = OperatorProcess(
            plane.operator_kubeconfig, folder / "operator.log", operator_port, PERSEUS_PROMETHEUS_URL=prometheus.url
        )
        operator.start()

        def find(kind: str, namespace: str, name: str) -> dict[str, Any]:
            text = plane.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
            found: dict[str, Any] = json.loads(text) if text.strip() else {}
            return found

        def carry_plans() -> None:
            carried = ""
            while not stopped.wait(0.5):
                data = (find("configmap", SYSTEM, PLAN_NAME).get("binaryData") or {}).get(names.PLAN_KEY, "")
                if data and data != carried:
                    with lock:
                        agent.plan(base64.b64decode(data))
                    carried = data

        try:
            begin = time.time()
            plane.kubectl("create", "namespace", NAMESPACE)
            listed = {
                "apiVersion": "v1",
                "kind": "List",
                "items": [profile_config_map(), perseus_job(JOB, straggler={"dwellSeconds": 2})],
            }
            plane.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=json.dumps(listed))
            until("the frontier's ConfigMap", lambda: find("configmap", NAMESPACE, f"{JOB}-frontier"))
            patch = json.dumps({"binaryData": frontier_data()})
            plane.kubectl("patch", "configmap", f"{JOB}-frontier", "-n", NAMESPACE, "--type=merge", "-p", patch)
            job_uid = find("perseusjob", NAMESPACE, JOB)["metadata"]["uid"]
            for rank in range(RANKS):
                pod = {
                    "uid": uid(rank), "namespace": NAMESPACE, "name": f"{JOB}-{rank}", "phase": "Running", "job": JOB,
                    "job_uid": job_uid, "rank": rank, "stages": STAGES, "tensor_parallel": 1,
                }  # fmt: skip
                with lock:
                    agent.ask(do="pod", pod=pod)
            threading.Thread(target=carry_plans, daemon=True).start()
            trainers = start_trainers(node, agent)

            def runs() -> bool:
                with lock:
                    metrics = agent.counters()["metrics"].splitlines()
                active = [line for line in metrics if line.startswith("perseus_plan_generation_active{")]
                return len(active) == RANKS and all(line.endswith(" 1.0") for line in active)

            until("every rank runs the plan", runs)
            time.sleep(PLANNED_SECONDS)
            node.gpus[RANKS - 1].inject(slowdown=SLOWDOWN)

            def saved_behind_a_straggler() -> bool:
                data = find("configmap", NAMESPACE, f"{JOB}-report").get("data") or {}
                return bool(json.loads(data.get(names.REPORT_KEY, "{}")).get("savedStragglerJoules", 0) > 0)

            # A busy machine is noise to the operator, who waits for evidence: wait for what it does, not for a time.
            until("something is saved behind a straggler", saved_behind_a_straggler, STRAGGLER_SECONDS)
            node.gpus[RANKS - 1].clear()
            time.sleep(RECOVERED_SECONDS)
            yield prometheus.url, Window(begin, time.time(), NAMESPACE, JOB)
        finally:
            stopped.set()
            for process in trainers:
                process.kill()
                process.wait()
            operator.kill()
            page.shutdown()
            page.server_close()
            agent.kill()
            prometheus.stop()
            kubelet.stop()
            node.close()


@pytest.mark.parametrize(("name", "title", "source"), SOURCES, ids=[f"{name}: {title}" for name, title, _ in SOURCES])
def test_a_panel_shows_data(run: tuple[str, Window], name: str, title: str, source: dict[str, Any]) -> None:
    url, window = run
    for answer in ask_panel(url, source, window):
        assert answer.series, f"{name}, {title}: no data for {answer.expression}"


def test_what_was_saved_is_told_apart(run: tuple[str, Window]) -> None:
    url, window = run
    (answer,) = ask_panel(url, {"expr": 'perseus_job_saved_joules{namespace=~"$namespace", job=~"$job"}'}, window)
    saved = {series.labels["cause"]: series.values[-1] for series in answer.series}
    assert saved["intrinsic"] > 0
    assert saved["straggler"] > 0


def test_what_was_told_never_goes_back(run: tuple[str, Window]) -> None:
    url, window = run
    (answer,) = ask_panel(url, {"expr": 'perseus_job_energy_joules{namespace=~"$namespace", job=~"$job"}'}, window)
    (series,) = answer.series
    assert list(series.values) == sorted(series.values)
    assert series.values[-1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_can_be_made(run: tuple[str, Window], name: str, tmp_path: Path) -> None:
    url, window = run
    draw_dashboard(url, load_dashboard(name), window, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000
