"""The simulator's command, and the stubs that it speaks to the kubelet with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import NodeFactory, simulator_environment

ROOT = Path(__file__).resolve().parents[2]


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perseus_simulator.main", *arguments], env=environment, capture_output=True, text=True
    )


def test_a_node_is_made_hurt_healed_and_looked_at(simulated_node: NodeFactory, tmp_path: Path) -> None:
    state = tmp_path / "new"
    environment = {**simulator_environment(simulated_node()), "PERSEUS_SIMULATOR_STATE": str(state)}
    made = command(environment, "create", "--gpus", "3", "--time-scale", "2")
    uuids = made.stdout.split()
    assert len(uuids) == 3, made.stderr
    assert command(environment, "inject", *uuids[1:], "--slowdown", "1.2").returncode == 0
    assert _slowdowns(state) == [1.0, 1.2, 1.2]
    assert json.loads(command(environment, "locks", "--json").stdout) == []
    assert command(environment, "clear", uuids[2]).returncode == 0
    assert _slowdowns(state) == [1.0, 1.2, 1.0]
    assert command(environment, "clear", "--all").returncode == 0
    assert _slowdowns(state) == [1.0, 1.0, 1.0]
    assert len(command(environment, "status").stdout.splitlines()) == 3


def _slowdowns(state: Path) -> list[float]:
    with SimulatedNode.open(state) as node:
        return [gpu.status().slowdown for gpu in node.gpus]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inject", "GPU-none", "--slowdown", "2"], "GPU-none is not a GPU of this node"),
        (["clear", "GPU-none"], "GPU-none is not a GPU of this node"),
        (["create", "--gpus", "65"], "from 1 to 64 GPUs"),
        (["train"], "PERSEUS_STAGES must be a whole number"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(
    simulated_node: NodeFactory, arguments: list[str], sentence: str
) -> None:
    done = command(simulator_environment(simulated_node()), *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_the_checked_in_stubs_are_those_of_the_definitions(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "protos", str(tmp_path)], check=True, cwd=ROOT)
    made = sorted(path for path in tmp_path.rglob("*_pb2*"))
    assert len(made) == 6
    for path in made:
        package = "simulator" if "perseus_simulator" in str(path) else "daemonset"
        assert path.read_text() == (ROOT / package / path.relative_to(tmp_path)).read_text(), path.name
