"""Training scripts that do what they should not, with the real trainer library and a real agent.

Training goes on each time, the GPU is unlocked, and the agent says why; what it says becomes a condition by a real
Prometheus.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import perseus_trainer
import pytest
from agent_process import BASELINE, AgentProcess, eventually, make_plan, uid, variant_of
from perseus_api.conditions import Reason
from perseus_operator.prometheus import JobReport, Prometheus
from perseus_operator.transport import Connection, NoAnswer, PrometheusAddress
from perseus_operator.troubles import told
from perseus_simulator.node import SimulatedNode
from perseus_trainer import Rank, Session

from harness.controlplane import free_port

ORDER, GPU_FREE = "FFBB", None
INSTRUCTIONS = {"F": "forward", "B": "backward"}

SECOND_PROCESS = """
import sys, time
import perseus_trainer
from perseus_trainer import Rank
sys.stdin.readline()
session = perseus_trainer.connect(Rank("research", "gpt", 0, 0, 0, sys.argv[2]), sys.argv[1])
trained = 0
while not session.connected:
    with session.iteration(), session.instruction("forward"):
        trained += 1
    time.sleep(0.01)
print(trained, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def session(agent: AgentProcess, node: SimulatedNode) -> Iterator[Session]:
    """Rank 0 with a plan of two microbatches, which it has followed for an iteration."""
    # A test may look at the clock of an iteration that has ended: the agent waits for the next as long as half of one.
    baseline = {**BASELINE, "iterationSeconds": 60.0}
    agent.plan(make_plan(order=[ORDER, ORDER], variants=[variant_of(*[810] * 4)], baseline=baseline))
    made = perseus_trainer.connect(Rank("research", "gpt", 0, 0, 0, node.gpus[0].uuid), str(agent.path))
    eventually(lambda: made.connected, "the session is connected")
    train(made, ORDER, 1)
    eventually(lambda: state(agent) == ("following", ""), "the plan is followed")
    yield made
    made.close()


def train(session: Session, order: str, index: int | None = None) -> None:
    with session.iteration(index):
        for letter in order:
            with session.instruction(INSTRUCTIONS[letter]):
                pass


def state(agent: AgentProcess) -> tuple[str, str]:
    """The state of rank 0 and its reason, as Prometheus is told."""
    for line in agent.counters()["metrics"].splitlines():
        if line.startswith("perseus_rank_state{") and 'stage="0"' in line and line.endswith(" 1.0"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            return labels["state"], labels["reason"]
    return "", ""


def books(agent: AgentProcess) -> tuple[float, ...]:
    """Iterations, energy and baseline of rank 0, as Prometheus is told."""
    lines = [line for line in agent.counters()["metrics"].splitlines() if 'stage="0"' in line]
    names = ("perseus_iterations_total{", "perseus_gpu_energy_joules_total{", "perseus_gpu_baseline_joules_total{")
    return tuple(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)) for name in names)


def nested(session: Session) -> None:
    with session.iteration(), session.instruction("forward"), session.instruction("backward"):
        pass


def fails_in_the_middle(session: Session) -> None:
    with pytest.raises(ValueError, match="bad batch"), session.iteration(), session.instruction("forward"):
        raise ValueError("a bad batch")


def fails_at_the_end(session: Session) -> None:
    @session.iteration()
    def step() -> None:
        for letter in ORDER:
            with session.instruction(INSTRUCTIONS[letter]):
                pass
        raise ValueError("no optimiser")

    with pytest.raises(ValueError, match="no optimiser"):
        step()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda session: train(session, "FBFB"), "order"),
        (nested, "order"),
        (lambda session: train(session, "FB"), "order"),
        (lambda session: train(session, "FFB"), "unfinished"),
        (fails_in_the_middle, "broken"),
        (fails_at_the_end, "broken"),
        (lambda session: train(session, "FFBBFB"), "surplus"),
    ],
    ids=[
        "another order",
        "nested",
        "fewer microbatches",
        "cut short",
        "an exception",
        "a late exception",
        "more microbatches",
    ],
)
def test_training_goes_on_unlocked_and_the_agent_says_why(
    script: Callable[[Session], None], reason: str, session: Session, agent: AgentProcess, node: SimulatedNode
) -> None:
    eventually(lambda: node.gpus[0].locked_range() is not None, "the plan's clock is set")
    script(session)
    eventually(lambda: state(agent) == ("mismatch", reason), f"the agent says {reason}")
    eventually(lambda: node.gpus[0].locked_range() is GPU_FREE, "the GPU is unlocked")
    train(session, ORDER)
    eventually(lambda: state(agent) == ("following", ""), "the plan is followed again")
    train(session, ORDER)
    eventually(lambda: node.gpus[0].locked_range() is not None, "and its clocks are set again")


def test_an_iteration_that_an_exception_left_is_energy_used_and_no_iteration(
    session: Session, agent: AgentProcess
) -> None:
    for _ in range(2):
        train(session, ORDER)
    before: list[tuple[float, ...]] = []

    @session.iteration()
    def step() -> None:
        eventually(lambda: books(agent)[0] == 3, "the iterations before are counted")
        before.append(books(agent))
        time.sleep(0.3)  # The device's counter shows every 100 ms what it has used.
        raise ValueError("a bad batch")

    with pytest.raises(ValueError, match="a bad batch"):
        step()
    eventually(lambda: books(agent)[1] > before[0][1], "what it used is counted")
    iterations, energy, baseline = books(agent)
    assert iterations == 3
    assert baseline - before[0][2] == pytest.approx(energy - before[0][1]), "no saving is claimed for it"


def test_a_fork_changes_nothing(session: Session, agent: AgentProcess) -> None:
    with session.iteration():
        for letter in ORDER:
            with session.instruction(INSTRUCTIONS[letter]):
                if letter == "B":
                    child = os.fork()
                    if child == 0:
                        with session.instruction("forward"):
                            os._exit(0)
                    os.waitpid(child, 0)
    train(session, ORDER)
    assert state(agent) == ("following", "")
    assert "perseus_mismatches_total" in agent.counters()["metrics"]
    mismatches = [line for line in agent.counters()["metrics"].splitlines() if line.startswith("perseus_mismatches")]
    assert all(line.endswith(" 0.0") for line in mismatches if not line.startswith("perseus_mismatches_created"))


def test_a_child_that_trains_too_is_refused_and_takes_nothing_from_its_parent(
    session: Session, agent: AgentProcess
) -> None:
    go_on, finish = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(finish)
        train(session, ORDER)
        os.read(go_on, 1)
        os._exit(0)
    os.close(go_on)
    try:
        agent.is_in_pod(child, uid(0))
        refused = 'perseus_pod_refused{job="gpt",namespace="research",pod="gpt-0",reason="second_process"} 1.0'
        eventually(lambda: _has(agent, refused), "the child is refused, and its pod named")
        train(session, ORDER)
        assert state(agent) == ("following", "")
    finally:
        os.close(finish)
        os.waitpid(child, 0)


def test_two_processes_that_say_to_be_one_rank_do_not_take_the_gpu_from_each_other(
    session: Session, agent: AgentProcess, node: SimulatedNode
) -> None:
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS, str(agent.path), node.gpus[0].uuid],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert second.stdin is not None
        assert second.stdout is not None
        agent.is_in_pod(second.pid, uid(0))
        second.stdin.write("go\n")
        second.stdin.flush()
        refused = 'perseus_pod_refused{job="gpt",namespace="research",pod="gpt-0",reason="second_process"} 1.0'
        eventually(lambda: _has(agent, refused), "the second process is refused, and its pod named")
        assert session.connected
        train(session, ORDER)
        assert state(agent) == ("following", "")
        session.close()
        assert int(second.stdout.readline()) > 0, "it has trained meanwhile, and is served when the first has gone"
    finally:
        second.kill()
        second.communicate()


def _has(agent: AgentProcess, sample: str) -> bool:
    labels = set(re.findall(r'\w+="[^"]*"', sample))
    return any(
        line.startswith("perseus_pod_refused{") and labels <= set(re.findall(r'\w+="[^"]*"', line))
        for line in agent.counters()["metrics"].splitlines()
    )


@pytest.fixture
def prometheus(agent: AgentProcess, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes the agent every second; its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is missing (on Debian: apt-get install prometheus); make test installs it")
    mutex = threading.Lock()

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with mutex:
                page = agent.counters()["metrics"].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    pages = http.server.HTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    port = free_port()
    targets = [{"targets": [f"127.0.0.1:{pages.server_address[1]}"]}]
    scrape = {"job_name": "agents", "honor_labels": True, "static_configs": targets}
    (tmp_path / "prometheus.json").write_text(
        json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    process = subprocess.Popen(
        [
            program,
            f"--config.file={tmp_path}/prometheus.json",
            f"--storage.tsdb.path={tmp_path}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    pages.shutdown()
    pages.server_close()


async def report_with_troubles(address: str) -> JobReport:
    """What the operator learns of the job, once there is something wrong with it."""
    async with aiohttp.ClientSession() as http_session:
        asking = Prometheus(Connection(PrometheusAddress(address), http_session))
        for _ in range(150):
            try:
                report = (await asking.reports()).get(("research", "gpt"))
            except NoAnswer:
                report = None
            if report is not None and report.troubles:
                return report
            await asyncio.sleep(0.2)
    pytest.fail("the operator never heard of the trouble")


def test_what_the_agent_says_is_the_reason_of_a_condition(session: Session, prometheus: str) -> None:
    train(session, "FFBBFB")
    report = asyncio.run(report_with_troubles(prometheus))
    reason, words = told(report.troubles)
    assert reason is Reason.PLAN_NOT_FOLLOWED
    assert words.startswith(
        "pipeline 0 stage 0 (pod gpt-0) runs more instructions in an iteration than the plan: its GPU is unlocked"
    )
