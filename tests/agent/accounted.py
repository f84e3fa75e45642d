"""A hundred iterations on a simulated GPU under an agent, with a restart: what it accounts, and the truth.

The trainer's process dies in the middle of an iteration and another takes over. True energy is the device's own,
without the counter's refresh of 100 ms.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient, SimulatedGpu, SimulatedNode
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))
from agent_process import AgentProcess, Trainer, eventually, make_plan

BROKEN_OFF, ITERATIONS, UNLOCKED = 60, 100, 10


@dataclass(frozen=True)
class Accounted:
    """What the agent's counters say after the run, and what the device used in the whole iterations (joules)."""

    true_joules: float
    joules: float
    baseline_joules: float
    iterations: float

    @property
    def error(self) -> float:
        """Of the energy: 0.01 is 1 % too much."""
        return self.joules / self.true_joules - 1


def account_hundred_iterations(agent: AgentProcess, node: SimulatedNode) -> Accounted:
    """Train on the node's first GPU, locked after the first iterations, and read the agent's counters."""
    agent.plan(make_plan(first=UNLOCKED + 1, clock=810))
    gpu = node.gpus[0]
    true = 0.0
    for first, end, broken in ((0, BROKEN_OFF + 1, True), (BROKEN_OFF + 1, ITERATIONS + 1, False)):
        true += _train(agent.path, node, gpu, first, end, broken)
        eventually(lambda: agent.counters()["leases"] == 0, "the lease ends")
    return Accounted(
        true,
        _series(agent, "perseus_gpu_energy_joules_total"),
        _series(agent, "perseus_gpu_baseline_joules_total"),
        _series(agent, "perseus_iterations_total"),
    )


def _series(agent: AgentProcess, name: str) -> float:
    """A counter, summed over its labels."""
    families = text_string_to_metric_families(agent.counters()["metrics"])
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def _train(path: Path, node: SimulatedNode, gpu: SimulatedGpu, first: int, end: int, broken: bool) -> float:
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
