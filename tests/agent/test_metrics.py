"""What Prometheus sees of a rank, read from the page of an agent that serves one."""

from __future__ import annotations

import re

from agent_process import AgentProcess, Trainer, eventually, make_plan
from perseus_simulator.node import SimulatedNode


def series(agent: AgentProcess, name: str, **labels: str) -> dict[str, float]:
    """The values of a metric by their labels, those that carry the given labels."""
    found = {}
    for line in agent.counters()["metrics"].splitlines():
        match = re.fullmatch(rf"{name}(\{{.*\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            found[match[1] or ""] = float(match[2])
    return found


def value(agent: AgentProcess, name: str, **labels: str) -> float:
    """The one value of a metric with these labels."""
    (found,) = series(agent, name, **labels).values()
    return found


def test_instructions_are_summed_and_compared_with_what_the_plan_expects(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan(stageSeconds=[{"F": {810: 0.25, 1410: 0.125}}, {}]))
    trainer.begin(1)
    trainer.run(1, "FB")
    eventually(
        lambda: bool(series(agent, "perseus_instruction_seconds_count", instruction="backward")), "it is counted"
    )
    assert value(agent, "perseus_instruction_seconds_count", instruction="forward") == 1
    assert value(agent, "perseus_instruction_expected_seconds_total", instruction="forward") in (0.25, 0.125)
    assert series(agent, "perseus_instruction_expected_seconds_total", instruction="backward") == {}
    compared = value(agent, "perseus_instruction_compared_seconds_total", instruction="forward")
    assert compared == value(agent, "perseus_instruction_seconds_sum", instruction="forward") > 0
