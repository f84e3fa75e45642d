"""The planner's narrow door: profile, pipeline and objective in, frontier and plans out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt
from perseus_api.frontier import Frontier, PipelineShape, RealisedPlan
from perseus_api.profile import Profile

from perseus_planner.costs import PICOSECONDS
from perseus_planner.durations import stage_seconds
from perseus_planner.errors import PlanningError
from perseus_planner.objective import Deadline, MaximumSlowdown, MinimumEnergy, Objective, PowerBudget, Straggler
from perseus_planner.pipeline import Pipeline
from perseus_planner.problem import PlannedStep, Problem
from perseus_planner.realise import SEARCH_STEPS
from perseus_planner.steps import letters
from perseus_planner.sweep import Sweep
from perseus_planner.switched import Switching, realise_bounded, switches_of
from perseus_planner.switching import SwitchBound

Integers = npt.NDArray[np.int64]
DEFAULT_PLANS = 320
MAXIMUM_CLOCKS = 800_000  # of all plans together: keeps the document below a ConfigMap's size
MAXIMUM_BREAKPOINTS = 2048
FRONTIER_SEARCH_STEPS = 1_500_000  # of all plans together: two or three seconds
POWER_ATTEMPTS = 8
_MOMENT = 1_000_000  # ps: the energies of two times so far apart differ by more than rounding


@dataclass(frozen=True)
class Planned:
    """A plan for an objective, with what it brings. Energies are of all GPUs of the pipeline in one iteration.

    Attributes:
        pipeline: what it is for.
        plan: the plan (its own energies are of one GPU of each rank).
        fastest: every instruction at its highest clock: the reference.
        limit_seconds: the time that the plan had to keep.
        iteration_seconds: longest path at the plan's real times.
        iteration_joules: energy, blocking included.
        fastest_joules: the reference's energy.
        bound_joules: the least energy that the relaxation allows within the limit.
        steps: by rank, what runs in order of execution.
        fastest_steps: the same for the reference.
        switching: how often clocks change.
        free: where switches were bounded or have a price, the plan that knows nothing of them; its own switches are
            not paid for in its figures.
    """

    pipeline: Pipeline
    plan: RealisedPlan
    fastest: RealisedPlan
    limit_seconds: float
    iteration_seconds: float
    iteration_joules: float
    fastest_joules: float
    bound_joules: float
    steps: tuple[tuple[PlannedStep, ...], ...]
    fastest_steps: tuple[tuple[PlannedStep, ...], ...]
    switching: Switching
    free: RealisedPlan | None = None

    @property
    def switch_cost_points(self) -> float:
        """Percentage points of savings that the bound on switches, and their price, cost; 0 without either."""
        if self.free is None:
            return 0.0
        ranks = self.pipeline.tensor_parallel
        return 100 * (self.iteration_joules - ranks * self.free.iteration_joules) / self.fastest_joules

    @property
    def savings_percent(self) -> float:
        """Energy saved against every instruction at the highest clock."""
        return 100 * (1 - self.iteration_joules / self.fastest_joules)

    @property
    def bound_savings_percent(self) -> float:
        """What no plan within the limit can exceed."""
        return 100 * (1 - self.bound_joules / self.fastest_joules)

    @property
    def gap_points(self) -> float:
        """Percentage points between the bound and the plan: what discrete clocks cost, and what the search missed."""
        return self.bound_savings_percent - self.savings_percent

    @property
    def slowdown_percent(self) -> float:
        """Time above every instruction at the highest clock."""
        return 100 * (self.iteration_seconds / self.fastest.iteration_seconds - 1)


def plan(
    profile: Profile,
    pipeline: Pipeline,
    objective: Objective,
    steps: int = SEARCH_STEPS,
    switches: SwitchBound | None = None,
) -> Planned:
    """Compute the plan for an objective, its limit kept exactly.

    Args:
        profile: measured times and energies; stages beyond the pipeline's are left out.
        pipeline: its shape.
        objective: what the plan is chosen for.
        steps: how long to search for better plans than rounding finds.
        switches: bound on clock switches, and their price; by default they are free.

    Raises:
        PlanningError: the profile lacks a stage or an instruction, or no plan meets the objective.
    """
    problem = Problem(profile, pipeline)
    if isinstance(objective, PowerBudget):
        return _plan_for_power(problem, objective.watts, steps, switches)
    return plan_for_limit(problem, _limit(problem, objective), steps, isinstance(objective, Straggler), switches)


def exact_frontier(profile: Profile, pipeline: Pipeline) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return every breakpoint of the relaxation: (seconds growing, joules of all GPUs), from no slowdown to T*.

    Raises:
        PlanningError: the profile lacks a stage or an instruction.
    """
    problem = Problem(profile, pipeline)
    swept = problem.sweep(np.array([problem.shortest], dtype=np.int64))
    times = _breakpoints(problem, swept)
    energies = [pipeline.tensor_parallel * problem.bound_joules(swept, float(each)) for each in times]
    return times / PICOSECONDS, np.array(energies)


def frontier(
    profile: Profile,
    pipeline: Pipeline,
    plans: int = DEFAULT_PLANS,
    profile_checksum: str = "",
    search_steps: int = FRONTIER_SEARCH_STEPS,
) -> Frontier:
    """Compute the frontier of a pipeline and plans on it, from no slowdown to T*.

    Args:
        profile: measured times and energies; stages beyond the pipeline's are left out.
        pipeline: its shape.
        plans: how many plans at most; large pipelines get fewer, so that the document fits a ConfigMap.
        profile_checksum: kept in the document, so that a stale frontier is recognised.
        search_steps: how long to search for better plans than rounding finds, in all.

    Raises:
        PlanningError: the profile lacks a stage or an instruction.
        ValueError: the schedule has no order for this shape (PipelineError), or given orders cannot run.
    """
    problem = Problem(profile, pipeline)
    count = max(2, min(plans, MAXIMUM_CLOCKS // problem.dag.nodes))
    targets = np.unique(np.linspace(problem.shortest, problem.longest, count).astype(np.int64))[::-1]
    swept = problem.sweep(targets)
    times = _breakpoints(problem, swept)
    if len(times) > MAXIMUM_BREAKPOINTS:
        times = times[np.unique(np.linspace(0, len(times) - 1, MAXIMUM_BREAKPOINTS).astype(np.int64))]
    alike = len(set(problem.watts)) == 1
    fastest, realised = problem.fastest(swept), _plans(problem, swept, targets, search_steps)
    return Frontier(
        shape=PipelineShape(
            stages=pipeline.stages,
            microbatches=pipeline.microbatches,
            tensor_parallel=pipeline.tensor_parallel,
            schedule=pipeline.schedule,
            chunks=pipeline.chunks,
            v_shape=pipeline.v_shape,
        ),
        profile_checksum=profile_checksum,
        blocking_power_watts=problem.watts[0] if alike else sum(problem.watts) / len(problem.watts),
        stage_blocking_power_watts=() if alike else problem.watts,
        order=tuple(letters(order) for order in problem.orders),
        microbatches=tuple(tuple(step.microbatch for step in order) for order in problem.orders),
        chunks=tuple(tuple(step.chunk for step in order) for order in problem.orders) if pipeline.chunks > 1 else (),
        fastest=fastest,
        fastest_stage_joules=problem.fastest_stage_joules(),
        plans=realised,
        stage_seconds=stage_seconds(problem, (fastest, *realised)),
        breakpoint_seconds=tuple((times / PICOSECONDS).tolist()),
        breakpoint_joules=tuple(problem.bound_joules(swept, float(each)) for each in times),
        tool_version=_version(),
    )


def _plans(problem: Problem, swept: Sweep, targets: Integers, search_steps: int) -> tuple[RealisedPlan, ...]:
    """Realise a plan at each target: time grows and cost falls from one to the next."""
    found: list[RealisedPlan] = []
    best = np.inf
    for index in reversed(range(len(targets))):
        target = int(targets[index])
        # The plan without slowdown is the one that most jobs run all the time: it gets a fifth of the search.
        steps = search_steps // (5 if target == problem.shortest else len(targets))
        options = problem.realise(swept, index, target, steps)
        cost = problem.cost_joules(options)
        if cost < best:
            best = cost
            found.append(problem.realised(swept, options))
    found.sort(key=lambda each: each.iteration_seconds)
    return tuple(found)


def _limit(problem: Problem, objective: Objective) -> int:
    """The time that a plan may take at most, in ps."""
    if isinstance(objective, Straggler | Deadline):
        limit = int(objective.seconds * PICOSECONDS)
        if limit < problem.least:
            raise PlanningError(
                f"the deadline of {objective.seconds:g} s cannot be kept: the fastest plan takes "
                f"{problem.least / PICOSECONDS:.6f} s; allow at least that"
            )
        return min(limit, problem.longest)
    if isinstance(objective, MinimumEnergy):
        return problem.longest
    percent = objective.percent if isinstance(objective, MaximumSlowdown) else 0.0
    return min(problem.longest, int(problem.shortest * (1 + percent / 100)))


def plan_for_limit(
    problem: Problem, limit: int, steps: int, waiting_is_free: bool = False, switches: SwitchBound | None = None
) -> Planned:
    """Plan for at most a time in ps, or for the time of least energy if that is shorter.

    While a straggler makes everybody wait, waiting is free in the sense that no plan avoids it: then longer is better.
    """
    swept = problem.sweep(np.array([limit], dtype=np.int64))
    if (
        not waiting_is_free
        and swept.cost_at(limit) - swept.cost_at(limit + _MOMENT) < problem.waiting_watts * _MOMENT / PICOSECONDS
    ):
        # The next moment would save less than it costs all ranks to wait for it: the least energy may lie before.
        swept = problem.sweep(np.array([min(limit, problem.shortest)], dtype=np.int64))
        times = _breakpoints(problem, swept)
        limit = int(times[np.argmin([problem.bound_joules(swept, float(each)) for each in times])])
        swept = problem.sweep(np.array([limit], dtype=np.int64))
    chosen = problem.realised(swept, problem.realise(swept, 0, limit, steps))
    free = None
    if switches is not None:
        free, chosen = chosen, realise_bounded(problem, swept, 0, limit, switches)
    fastest = problem.fastest(swept)
    ranks = problem.pipeline.tensor_parallel
    return Planned(
        pipeline=problem.pipeline,
        plan=chosen,
        fastest=fastest,
        limit_seconds=limit / PICOSECONDS,
        iteration_seconds=chosen.iteration_seconds,
        iteration_joules=ranks * chosen.iteration_joules,
        fastest_joules=ranks * fastest.iteration_joules,
        bound_joules=ranks * problem.bound_joules(swept, limit),
        steps=problem.steps(chosen, switches.seconds if switches else 0.0),
        fastest_steps=problem.steps(fastest),
        switching=switches_of(problem, chosen, switches),
        free=free,
    )


def _plan_for_power(problem: Problem, watts: float, steps: int, switches: SwitchBound | None = None) -> Planned:
    """Plan for the shortest time of an average power: the bound's time first, then as much more as the plan needs."""
    ranks = problem.pipeline.tensor_parallel
    swept = problem.sweep(np.array([problem.shortest], dtype=np.int64))
    limit = problem.shortest
    for time in _breakpoints(problem, swept):
        limit = int(time)
        if ranks * problem.bound_joules(swept, limit) * PICOSECONDS / limit <= watts:
            break
    for _ in range(POWER_ATTEMPTS):
        found = plan_for_limit(problem, limit, steps, waiting_is_free=True, switches=switches)
        power = found.iteration_joules / found.iteration_seconds
        if power <= watts:
            return found
        if limit >= problem.longest:
            break
        # Energy hardly falls over so small a step: time alone must bring the power down.
        limit = min(problem.longest, max(limit + 1, int(limit * power / watts)))
    raise PlanningError(
        f"no plan draws at most {watts:g} W on average: the least found is {power:.1f} W; raise the power budget"
    )


def _breakpoints(problem: Problem, swept: Sweep) -> Integers:
    """Times of the relaxation's breakpoints from no slowdown on, growing, the ends included."""
    times = swept.picoseconds[::-1]
    return np.unique(np.concatenate([[problem.shortest], times[times >= problem.shortest]])).astype(np.int64)


def _version() -> str:
    try:
        return version("perseus-operator")
    except PackageNotFoundError:
        return ""
