"""Fixtures of the agent's tests: a node of simulated GPUs, its kubelet, and an agent that serves two ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import *  # noqa: F403
from perseus_simulator.testing import NodeFactory, simulator_environment

sys.path.insert(0, str(Path(__file__).parent))

from agent_nursery import AgentNursery
from agent_process import AgentProcess, Kubelet, Trainer

TRAINER_PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from agent_process import Trainer
input()
trainer = Trainer(Path(sys.argv[2])).served(sys.argv[3])
trainer.begin(1)
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def node(simulated_node: NodeFactory) -> SimulatedNode:
    """Three GPUs: two of the job's ranks, and a bystander that nobody may touch."""
    return simulated_node(3)


@pytest.fixture
def kubelet(node: SimulatedNode, tmp_path: Path) -> Iterator[Kubelet]:
    """The kubelet, which gave each of two pods a GPU."""
    started = Kubelet(tmp_path)
    started.devices = [(f"gpt-{index}", "nvidia.com/gpu", node.gpus[index].uuid) for index in range(2)]
    yield started
    started.stop()


@pytest.fixture(scope="session")
def nursery(simulator_library: Path) -> Iterator[AgentNursery]:
    """Where agents come from."""
    started = AgentNursery(simulator_library.parent)
    yield started
    started.close()


@pytest.fixture
def agent(node: SimulatedNode, kubelet: Kubelet, tmp_path: Path, nursery: AgentNursery) -> Iterator[AgentProcess]:
    """An agent that knows two pods of the job; this process is in the first one. The bystander stays untouched."""
    process = AgentProcess(tmp_path, simulator_environment(node), nursery=nursery)
    process.start()
    process.pod(0)
    process.pod(1)
    yield process
    process.kill()
    assert node.gpus[2].calls["set_locked_clocks"] == 0
    assert node.gpus[2].calls["reset_locked_clocks"] == 0


@pytest.fixture
def trainer(agent: AgentProcess, node: SimulatedNode) -> Iterator[Trainer]:
    """Rank 0, served."""
    served = Trainer(agent.path).served(node.gpus[0].uuid)
    yield served
    served.close()


@pytest.fixture
def trainer_process(agent: AgentProcess, node: SimulatedNode) -> Iterator[Callable[[], int]]:
    """Start rank 0 as a process of its own that has begun iteration 1; return its process id."""
    started: list[subprocess.Popen[str]] = []

    def start() -> int:
        command = [
            sys.executable,
            "-c",
            TRAINER_PROGRAM,
            str(Path(__file__).parent),
            str(agent.path),
            node.gpus[0].uuid,
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        agent.is_in_pod(process.pid, "00000000-0000-4000-8000-000000000000")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "locked\n"
        return process.pid

    yield start
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
