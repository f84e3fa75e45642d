"""Fixtures of the trainer's tests: a rank, the agent's side of its socket, and the simulated GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from perseus_simulator.testing import *  # noqa: F403
from perseus_trainer import Rank

sys.path.insert(0, str(Path(__file__).parent))

from agent_side import AGENT_PROGRAM, AgentSide, AgentStarter


@pytest.fixture
def rank() -> Rank:
    return Rank("research", "gpt", pipeline=1, stage=3, tensor_rank=0, gpu_uuid="GPU-1")


@pytest.fixture
def agent_side(tmp_path: Path) -> Iterator[AgentSide]:
    side = AgentSide(tmp_path / "agent.sock")
    yield side
    side.close()


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[AgentStarter]:
    """Start the agent's side as a process of its own, at ``tmp_path / "agent.sock"``."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        path = tmp_path / "agent.sock"
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", AGENT_PROGRAM, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate()
