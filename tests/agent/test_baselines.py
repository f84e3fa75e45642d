"""A measured baseline outlives the agent that measured it, and nothing but a measured one is ever called so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from agent_process import AgentProcess, Trainer, eventually, make_plan, uid
from perseus_daemonset.baselines import Baselines, Unlocked
from perseus_simulator.node import SimulatedNode
from test_metrics import series, value

RANK = ("research", "gpt", 0, 0, 0, "gpt-0", "GPU-x")
SUMS = Unlocked(900.0, 3.0, 3)


def train(trainer: Trainer, iterations: range) -> None:
    for iteration in iterations:
        trainer.begin(iteration)
        time.sleep(0.15)  # the energy counter moves every 100 ms
        trainer.run(iteration, "FB")
        trainer.end(iteration)


def test_a_new_agent_goes_on_with_the_measured_baseline(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    train(trainer, range(4))
    agent.plan(make_plan(first=4))
    train(trainer, range(4, 6))
    eventually(lambda: value(agent, "perseus_iterations_total", stage="0") == 4, "they are counted")
    (kept,) = (agent.folder / "journal" / "baselines").iterdir()
    eventually(lambda: json.loads(kept.read_text())["iterations"] == 3, "and kept")
    before = value(agent, "perseus_gpu_baseline_iteration_joules", stage="0")
    agent.kill()
    agent.start()
    agent.pod(0)
    agent.plan(make_plan(first=4))
    again = Trainer(agent.path).served(node.gpus[0].uuid)
    train(again, range(6, 9))
    eventually(lambda: value(agent, "perseus_iterations_total", stage="0") == 2, "two whole iterations are counted")
    assert value(agent, "perseus_gpu_baseline_iteration_joules", stage="0") == before
    assert value(agent, "perseus_gpu_baseline_joules_total", source="measured") > 0
    assert series(agent, "perseus_gpu_baseline_joules_total", source="predicted") == {}
    again.close()


def test_a_pods_baseline_goes_with_the_pod(agent: AgentProcess, trainer: Trainer) -> None:
    train(trainer, range(4))
    folder = agent.folder / "journal" / "baselines"
    eventually(lambda: len(list(folder.iterdir())) == 1, "it is kept")
    agent.ask(do="gone", uid=uid(0))
    eventually(lambda: not list(folder.iterdir()), "it is gone")


def test_what_is_kept_is_found_again_by_pod_and_rank_alone(tmp_path: Path) -> None:
    books = Baselines(tmp_path)
    books.save("uid-1", RANK, SUMS)
    assert Baselines(tmp_path).load("uid-1", RANK) == SUMS
    assert books.load("uid-2", RANK) is None
    assert books.load("uid-1", (*RANK[:3], 1, *RANK[4:])) is None


def test_the_files_of_pods_that_are_gone_are_swept(tmp_path: Path) -> None:
    books = Baselines(tmp_path)
    books.save("uid-1", RANK, SUMS)
    books.save("uid-2", RANK, SUMS)
    books.sweep({"uid-2"})
    assert books.load("uid-1", RANK) is None
    assert books.load("uid-2", RANK) == SUMS


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2}, {"podUid": "uid-9"}, {"joules": "many"}, {"joules": -1}, {"seconds": 0}, {"iterations": 0},
        {"joules": float("nan")}, {"seconds": float("inf")}, {"iterations": 10**400}, {"rank": None},
    ],
)  # fmt: skip
def test_a_damaged_file_is_no_measurement(tmp_path: Path, changed: dict[str, object]) -> None:
    books = Baselines(tmp_path)
    books.save("uid-1", RANK, SUMS)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert books.load("uid-1", RANK) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 100, b"[1]", b"null", b"[" * 4000])
def test_a_torn_file_is_no_measurement(tmp_path: Path, content: bytes) -> None:
    books = Baselines(tmp_path)
    books.save("uid-1", RANK, SUMS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert books.load("uid-1", RANK) is None
