"""A plan under a bound on clock switches, for one problem: `switching` decides, this knows profiles and ranks.

A switch delays the instruction after it; meanwhile its GPU waits at the blocking power, which the plan's time already
pays for. Its own energy comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from perseus_api.frontier import RealisedPlan

from perseus_planner.costs import PICOSECONDS
from perseus_planner.errors import PlanningError
from perseus_planner.problem import Problem
from perseus_planner.sweep import Sweep
from perseus_planner.switching import Lanes, SwitchBound, bounded, count_switches

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
_ATTEMPTS = 6


@dataclass(frozen=True)
class Switching:
    """How often a plan switches clocks.

    Attributes:
        bound: what was asked for.
        switches: by rank, in one iteration, the way back to its first clock included.
        per_second: of the rank that switches most.
    """

    bound: SwitchBound
    switches: tuple[int, ...]
    per_second: float


def switches_of(problem: Problem, plan: RealisedPlan, bound: SwitchBound | None = None) -> Switching:
    """Count a plan's switches."""
    counts = []
    for order, row in zip(problem.orders, plan.clocks, strict=True):
        clocks = [clock for step, clock in zip(order, row, strict=True) if step.instruction.has_clock]
        counts.append(sum(clock != clocks[index - 1] for index, clock in enumerate(clocks)))
    return Switching(bound or SwitchBound(), tuple(counts), max(counts) / plan.iteration_seconds)


def realise_bounded(
    problem: Problem, swept: Sweep, index: int, limit_picoseconds: int, bound: SwitchBound
) -> RealisedPlan:
    """Return a plan within a limit and a bound.

    Raises:
        PlanningError: nothing that was found keeps both.
    """
    dag = problem.dag
    clocks, durations, joules = _tables(problem)
    tunable = np.array([key[1].has_clock for key in dag.keys])[dag.kind] & (dag.position >= 0)
    in_order = np.lexsort((dag.position, dag.stage))
    nodes = in_order[tunable[in_order]]
    ranks = problem.pipeline.stages
    lanes = Lanes(
        start=np.searchsorted(dag.stage[nodes], np.arange(ranks + 1)).astype(np.int64),
        nodes=nodes.astype(np.int64),
        durations=durations[dag.kind],
        joules=joules[dag.kind],
    )
    fixed = np.where(tunable, 0, durations[dag.kind, 0])
    highest = np.array([np.flatnonzero(row)[-1] for row in durations], dtype=np.int64)[dag.kind]
    dead = round(bound.seconds * PICOSECONDS)
    seconds = limit_picoseconds / PICOSECONDS
    allowed = len(nodes) if bound.per_second is None else int(bound.per_second * seconds)
    for _ in range(_ATTEMPTS):
        chosen = bounded(
            dag.before_start, dag.before, lanes, fixed, swept.prices_joules_per_picosecond(index), highest,
            limit_picoseconds, allowed, dead, bound.joules,
        )  # fmt: skip
        counts = count_switches(lanes, chosen)
        plan = _realised(problem, swept, lanes, chosen, fixed, clocks, counts, dead, bound.joules)
        if bound.per_second is None or counts.max() <= bound.per_second * plan.iteration_seconds + 1e-9:
            break
        allowed = int(bound.per_second * plan.iteration_seconds)  # The plan is shorter than its limit.
    late = plan.iteration_seconds > seconds * (1 + 1e-12)
    if late or (bound.per_second is not None and counts.max() > bound.per_second * plan.iteration_seconds + 1e-9):
        raise PlanningError(
            f"no plan was found that takes at most {seconds:.6f} s with at most {bound.per_second} switches a second "
            f"of {bound.seconds:g} s each: allow more time, or more switches"
        )
    return plan


def _tables(problem: Problem) -> tuple[Integers, Integers, Numbers]:
    """Clocks in growing order; duration (0: not measured) and cost of each kind of node at each."""
    dag, profile = problem.dag, problem.profile
    measured = [profile.measurements[key] for key in dag.keys]
    clocks = sorted({each.frequency_megahertz for key, rows in zip(dag.keys, measured, strict=True)
                     if key[1].has_clock for each in rows}) or [0]  # fmt: skip
    place = {clock: index for index, clock in enumerate(clocks)}
    durations = np.zeros((len(dag.keys), len(clocks)), dtype=np.int64)
    joules = np.zeros((len(dag.keys), len(clocks)))
    for kind, (key, rows) in enumerate(zip(dag.keys, measured, strict=True)):
        watts = profile.blocking_power_of(dag.kind_rank[kind] if dag.kind_rank else key[0])
        if dag.kind_beside and dag.kind_beside[kind]:
            watts = 0.0
        for each in rows:
            index = place[each.frequency_megahertz] if key[1].has_clock else 0
            durations[kind, index] = max(1, round(each.time_seconds * PICOSECONDS))
            joules[kind, index] = each.energy_joules - watts * each.time_seconds
    return np.array(clocks, dtype=np.int64), durations, joules


def _realised(
    problem: Problem,
    swept: Sweep,
    lanes: Lanes,
    chosen: Integers,
    fixed: Integers,
    clocks: Integers,
    counts: Integers,
    dead: int,
    switch_joules: float,
) -> RealisedPlan:
    nodes = np.arange(problem.dag.nodes)
    index = np.maximum(chosen, 0)
    picoseconds = np.where(chosen >= 0, lanes.durations[nodes, index], fixed)
    for low, high in zip(lanes.start[:-1], lanes.start[1:], strict=True):
        mine = lanes.nodes[low:high]
        picoseconds[mine] += dead * (chosen[mine] != np.roll(chosen[mine], 1))
    cost = float(lanes.joules[nodes, index].sum()) + switch_joules * int(counts.sum())
    return problem.document(swept, picoseconds, cost, np.where(chosen >= 0, clocks[index], 0))
