"""The measured durations of what a pipeline runs, for the documents: what the agents compare real instructions with."""

from __future__ import annotations

from collections.abc import Iterable

from perseus_api.durations import work
from perseus_api.frontier import RealisedPlan

from perseus_planner.problem import Problem


def stage_seconds(problem: Problem, plans: Iterable[RealisedPlan]) -> tuple[dict[str, dict[int, float]], ...]:
    """Return seconds by stage, by work and by clock, at every clock that a stage has in any of the plans.

    All instructions of a stage are told at all of its clocks: where the rate of changes is bounded, an instruction runs
    at the clock of the one before it.
    """
    clocks: list[set[int]] = [set() for _ in problem.orders]
    for plan in plans:
        for rank, stage_clocks in enumerate(plan.clocks):
            clocks[rank].update(stage_clocks)
    found = []
    for rank, order in enumerate(problem.orders):
        table: dict[str, dict[int, float]] = {}
        for instruction, chunk in sorted({(step.instruction, step.chunk) for step in order}):
            measured = problem.profile.measurements.get((problem.pipeline.virtual_stage(rank, chunk), instruction), ())
            seconds = {
                each.frequency_megahertz: round(each.time_seconds, 9)
                for each in measured
                if each.frequency_megahertz in clocks[rank] or not each.frequency_megahertz
            }
            if seconds:
                table[work(instruction.code, chunk)] = seconds
        found.append(table)
    return tuple(found)
