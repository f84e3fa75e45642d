"""Looking plans up in a frontier: what the operator does within a second of seeing a straggler. No numpy.

Plans stand in order of growing time, up to T*, where every instruction runs at its cheapest. While a straggler makes
everybody wait, the longer plan is always the better one; without one, waiting is paid for as well, and the least energy
of an iteration lies before T*.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from perseus_api.frontier import Frontier, RealisedPlan

from perseus_planner.errors import PlanningError
from perseus_planner.objective import Deadline, MaximumSlowdown, MinimumEnergy, Objective, PowerBudget, Straggler


def select(found: Frontier, objective: Objective) -> RealisedPlan:
    """Look the plan for an objective up.

    Raises:
        PlanningError: no plan of the frontier draws as little power as the objective asks for.
    """
    if isinstance(objective, MinimumEnergy):
        return _cheapest(found.plans)
    if isinstance(objective, Straggler):
        return plan_for_deadline(found, objective.seconds)
    if isinstance(objective, PowerBudget):
        return _plan_for_power(found, objective.watts)
    if isinstance(objective, Deadline):
        limit = objective.seconds
    else:
        percent = objective.percent if isinstance(objective, MaximumSlowdown) else 0.0
        limit = found.fastest.iteration_seconds * (1 + percent / 100)
    place = bisect_right(found.plans, limit, key=lambda each: each.iteration_seconds)
    return _cheapest(found.plans[: max(1, place)])


def plan_for_deadline(found: Frontier, seconds: float) -> RealisedPlan:
    """Look the plan for a straggler's time up, in O(log n): the slowest that keeps it, never past T*.

    Waiting until `seconds` costs the blocking power, whatever the plan: so the longest plan has the least energy. A
    deadline that no plan keeps gets the fastest one.
    """
    place = bisect_right(found.plans, seconds, key=lambda each: each.iteration_seconds)
    return found.plans[max(0, place - 1)]


def _cheapest(plans: tuple[RealisedPlan, ...]) -> RealisedPlan:
    return min(plans, key=lambda each: each.iteration_joules)


def _plan_for_power(found: Frontier, watts: float) -> RealisedPlan:
    """Look the fastest plan up that keeps an average power: along the frontier time grows and energy falls."""
    ranks = found.shape.tensor_parallel

    def power(plan: RealisedPlan) -> float:
        return ranks * plan.iteration_joules / plan.iteration_seconds

    place = bisect_left(found.plans, -watts, key=lambda each: -power(each))
    if place == len(found.plans):
        raise PlanningError(
            f"no plan draws at most {watts:g} W on average: the least is {power(found.plans[-1]):.1f} W; raise the "
            "power budget"
        )
    return found.plans[place]
