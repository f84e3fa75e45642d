"""Data-parallel pipelines that differ: each has its own profile (another GPU model or node) and gets its own plan.

All wait for the slowest at the gradient synchronisation. So there is one iteration time T for all; within it each
pipeline runs its own least-energy plan for T, never past its own T*. Without slowdown, T is the slowest pipeline's time
at its highest clocks: the others are stretched to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from perseus_api.profile import Profile

from perseus_planner.costs import PICOSECONDS
from perseus_planner.errors import PlanningError
from perseus_planner.objective import Deadline, MaximumSlowdown, MinimumEnergy, Objective, PowerBudget, Straggler
from perseus_planner.pipeline import Pipeline
from perseus_planner.planning import Planned, plan_for_limit
from perseus_planner.problem import Problem
from perseus_planner.realise import SEARCH_STEPS
from perseus_planner.sweep import Sweep

Numbers = npt.NDArray[np.float64]
_POWER_ATTEMPTS = 8


@dataclass(frozen=True)
class PlannedPipelines:
    """Plans of pipelines that synchronise with each other.

    Attributes:
        plans: of each pipeline.
        iteration_seconds: of the slowest of them: what an iteration takes.
        iteration_joules: of all GPUs of all pipelines, waiting for the slowest included.
        fastest_seconds: the same with every instruction at its highest clock.
        fastest_joules: the same with every instruction at its highest clock.
    """

    plans: tuple[Planned, ...]
    iteration_seconds: float
    iteration_joules: float
    fastest_seconds: float
    fastest_joules: float

    @property
    def savings_percent(self) -> float:
        """Energy saved against every instruction at the highest clock."""
        return 100 * (1 - self.iteration_joules / self.fastest_joules)


def plan_pipelines(
    pipelines: Sequence[tuple[Profile, Pipeline]], objective: Objective, steps: int = SEARCH_STEPS
) -> PlannedPipelines:
    """Plan pipelines that synchronise with each other once an iteration.

    Args:
        pipelines: profile and shape of each.
        objective: for all together; a power budget is for the sum of their GPUs.
        steps: how long to search, for each pipeline.

    Raises:
        PlanningError: a profile lacks something, or no plans meet the objective.
    """
    if not pipelines:
        raise PlanningError("there is no pipeline to plan: give at least one")
    problems = [Problem(*each) for each in pipelines]
    time = _time(problems, objective)
    found = _planned(problems, time, steps)
    if not isinstance(objective, PowerBudget):
        return found
    for _ in range(_POWER_ATTEMPTS):
        power = found.iteration_joules / found.iteration_seconds
        if power <= objective.watts or time >= max(each.longest for each in problems):
            break
        # Measured clocks stay a little above the relaxation: more time makes up for it.
        time = max(time + 1, int(time * power / objective.watts))
        found = _planned(problems, time, steps)
    if found.iteration_joules > objective.watts * found.iteration_seconds:
        raise _too_hungry(objective.watts, found.iteration_joules / found.iteration_seconds)
    return found


def _planned(problems: Sequence[Problem], time: int, steps: int) -> PlannedPipelines:
    plans = tuple(plan_for_limit(each, min(time, each.longest), steps, waiting_is_free=True) for each in problems)
    longest = max(each.iteration_seconds for each in plans)
    fastest = max(each.fastest.iteration_seconds for each in plans)
    return PlannedPipelines(
        plans=plans,
        iteration_seconds=longest,
        iteration_joules=sum(
            found.iteration_joules + _watts(problem) * (longest - found.iteration_seconds)
            for found, problem in zip(plans, problems, strict=True)
        ),
        fastest_seconds=fastest,
        fastest_joules=sum(
            found.fastest_joules + _watts(problem) * (fastest - found.fastest.iteration_seconds)
            for found, problem in zip(plans, problems, strict=True)
        ),
    )


def _too_hungry(watts: float, least: float) -> PlanningError:
    return PlanningError(
        f"no plans draw at most {watts:g} W on average together: the least found is {least:.1f} W; raise the power "
        "budget"
    )


def _watts(problem: Problem) -> float:
    return problem.waiting_watts * problem.pipeline.tensor_parallel


def _time(problems: Sequence[Problem], objective: Objective) -> int:
    """The time in ps that all pipelines may take."""
    shortest, longest = max(each.shortest for each in problems), max(each.longest for each in problems)
    least = max(each.least for each in problems)
    if isinstance(objective, Straggler | Deadline):
        limit = int(objective.seconds * PICOSECONDS)
        if limit < least:
            raise PlanningError(
                f"the deadline of {objective.seconds:g} s cannot be kept: the slowest pipeline takes "
                f"{least / PICOSECONDS:.6f} s at least; allow that"
            )
        if isinstance(objective, Straggler):
            return min(limit, max(longest, least))
    elif isinstance(objective, MinimumEnergy | PowerBudget):
        limit = longest
    else:
        limit = int(shortest * (1 + (objective.percent if isinstance(objective, MaximumSlowdown) else 0.0) / 100))
    limit = min(limit, longest)
    start = min(limit, shortest)
    times, joules = _together(problems, start, limit)
    if isinstance(objective, PowerBudget):
        kept = np.flatnonzero(joules * PICOSECONDS / times <= objective.watts)
        if len(kept) == 0:
            raise _too_hungry(objective.watts, float((joules * PICOSECONDS / times).min()))
        return int(times[kept[0]])
    return int(times[np.argmin(joules)])


def _together(problems: Sequence[Problem], start: int, limit: int) -> tuple[Numbers, Numbers]:
    """Breakpoints of the sum of all relaxations between two times (ps, growing), and joules of all GPUs there."""
    sweeps = [each.sweep(np.array([min(start, each.longest)], dtype=np.int64)) for each in problems]
    times = np.unique(np.concatenate([[start, limit], *(each.picoseconds for each in sweeps)]))
    times = times[(times >= start) & (times <= limit)].astype(np.float64)
    return times, sum(
        (_joules(problem, swept, times) for problem, swept in zip(problems, sweeps, strict=True)), np.zeros(len(times))
    )


def _joules(problem: Problem, swept: Sweep, times: Numbers) -> Numbers:
    costs = np.interp(times, swept.picoseconds[::-1], swept.cost_joules[::-1])
    found: Numbers = problem.pipeline.tensor_parallel * (costs + problem.waiting_watts * times / PICOSECONDS)
    return found
