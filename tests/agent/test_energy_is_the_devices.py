"""A hundred iterations on a simulated GPU: what the agent accounts is what the device used, over a restart too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import NodeFactory, example_profile

sys.path.insert(0, str(Path(__file__).parent))
from accounted import ITERATIONS, account_hundred_iterations
from agent_process import AgentProcess

MAXIMUM_ERROR = 0.005


@pytest.fixture
def node(simulated_node: NodeFactory) -> SimulatedNode:
    """Iterations of a third of a second and more: of a rank; two bystanders."""
    return simulated_node(3, example_profile(seconds=0.1))


def test_a_hundred_iterations_cost_what_the_device_used(agent: AgentProcess, node: SimulatedNode) -> None:
    found = account_hundred_iterations(agent, node)
    print(f"{found.true_joules:.1f} J used, {found.joules:.1f} J accounted ({100 * found.error:+.3f} %)")
    assert found.iterations == ITERATIONS, "each once, the broken one not at all"
    assert abs(found.error) <= MAXIMUM_ERROR
    assert 0.05 < 1 - found.joules / found.baseline_joules < 0.6
