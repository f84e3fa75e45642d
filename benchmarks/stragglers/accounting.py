"""Accounting against the simulated device's true energy: the run that `test_energy_is_the_devices` asserts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import example_profile, simulator_environment

from tests.agent.accounted import account_hundred_iterations
from tests.agent.agent_process import AgentProcess, Kubelet


def measure_accounting() -> dict[str, Any]:
    """Return what a hundred iterations truly used, and what the agent accounts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        node = SimulatedNode.create(folder / "node", example_profile(seconds=0.1), 2)
        kubelet = Kubelet(folder)
        agent = AgentProcess(folder, simulator_environment(node))
        try:
            kubelet.devices = [("gpt-0", "nvidia.com/gpu", node.gpus[0].uuid)]
            agent.start()
            agent.pod(0)
            found = account_hundred_iterations(agent, node)
        finally:
            agent.kill()
            kubelet.stop()
            node.close()
    return {
        "iterations": found.iterations,
        "true_joules": found.true_joules,
        "accounted_joules": found.joules,
        "error_percent": 100 * found.error,
    }
