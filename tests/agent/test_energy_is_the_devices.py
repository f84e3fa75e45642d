"""A hundred iterations on a simulated GPU: what the agent accounts is what the device truly used, over a restart too.

The trainer's process dies in the middle of an iteration and another takes over: the broken iteration counts nowhere,
all others once. True energy is the device's own, without the counter's refresh of 100 ms.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient, SimulatedGpu, SimulatedNode
from perseus_simulator.testing import NodeFactory, example_profile
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))
from agent_process import AgentProcess, Trainer, eventually, make_plan

BROKEN_OFF, ITERATIONS, UNLOCKED = 60, 100, 10
MAXIMUM_ERROR = 0.005


@pytest.fixture
def node(simulated_node: NodeFactory) -> SimulatedNode:
    """Iterations of a third of a second and more: of a rank; two bystanders."""
    return simulated_node(3, example_profile(seconds=0.1))


def series(agent: AgentProcess, name: str) -> float:
    """A counter, summed over its labels."""
    families = text_string_to_metric_families(agent.counters()["metrics"])
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def train(path: Path, node: SimulatedNode, gpu: SimulatedGpu, first: int, end: int, broken: bool) -> float:
    """Run iterations, one more half if `broken`; return what the device used in the whole ones, warm-up left out."""
    with KernelClient(node, gpu.uuid) as kernels:
        trainer = Trainer(path).served(gpu.uuid)
        counted_from = 0.0
        for iteration in range(first, end):
            if iteration == max(first, 1):
                counted_from = gpu.energy_joules
            trainer.begin(iteration)
            for instruction in (Instruction.FORWARD, Instruction.BACKWARD):
                with trainer.instruction(iteration, instruction):
                    kernels.run(0, instruction)
            trainer.end(iteration)
        used = gpu.energy_joules - counted_from
        if broken:
            trainer.begin(end)
            with trainer.instruction(end, Instruction.FORWARD):
                kernels.run(0, Instruction.FORWARD)
        trainer.close()
    return used


def test_a_hundred_iterations_cost_what_the_device_used(agent: AgentProcess, node: SimulatedNode) -> None:
    agent.plan(make_plan(first=UNLOCKED + 1, clock=810))
    gpu = node.gpus[0]
    true = 0.0
    for first, end, broken in ((0, BROKEN_OFF + 1, True), (BROKEN_OFF + 1, ITERATIONS + 1, False)):
        true += train(agent.path, node, gpu, first, end, broken)
        eventually(lambda: agent.counters()["leases"] == 0, "the lease ends")
    counted = series(agent, "perseus_gpu_energy_joules_total")
    error = counted / true - 1
    print(f"{true:.1f} J used, {counted:.1f} J accounted ({100 * error:+.3f} %)")
    assert series(agent, "perseus_iterations_total") == ITERATIONS, "each once, the broken one not at all"
    assert abs(error) <= MAXIMUM_ERROR
    assert 0.05 < 1 - counted / series(agent, "perseus_gpu_baseline_joules_total") < 0.6
