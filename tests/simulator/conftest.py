"""Simulated nodes for the simulator's own tests, and processes that use NVML on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import example_profile, simulated_node, simulator_environment, simulator_library

sys.path.insert(0, str(Path(__file__).parent))

from nvml_process import NvmlProcess

__all__ = ["NvmlStarter", "example_profile", "simulated_node", "simulator_environment", "simulator_library"]

NvmlStarter = Callable[..., NvmlProcess]


@pytest.fixture
def start_nvml() -> Iterator[NvmlStarter]:
    """Start a process with the real pynvml on a node; it has called nvmlInit unless told not to."""
    started: list[NvmlProcess] = []

    def start(node: SimulatedNode, *, init: bool = True, **environment: str) -> NvmlProcess:
        process = NvmlProcess(node, init=init, **environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
