"""Looking plans up in a frontier: what the operator does within a second of seeing a straggler. No numpy."""

from __future__ import annotations

from bisect import bisect_right

from perseus_api.frontier import Frontier, RealisedPlan

from perseus_planner.objective import MaximumSlowdown, MinimumEnergy, Objective


def select(found: Frontier, objective: Objective) -> RealisedPlan:
    """Look the plan for an objective up."""
    if isinstance(objective, MinimumEnergy):
        return min(found.plans, key=lambda each: each.iteration_joules)
    percent = objective.percent if isinstance(objective, MaximumSlowdown) else 0.0
    limit = found.fastest.iteration_seconds * (1 + percent / 100)
    return min(_up_to(found, limit), key=lambda each: each.iteration_joules)


def plan_for_deadline(found: Frontier, seconds: float) -> RealisedPlan:
    """Look the plan for a straggler's time up, in O(log n): the slowest that keeps it, never past T*.

    Waiting until `seconds` costs the blocking power, whatever the plan: so the longest plan has the least energy. A
    deadline that no plan keeps gets the fastest one.
    """
    place = bisect_right(found.plans, seconds, key=lambda each: each.iteration_seconds)
    return found.plans[max(0, place - 1)]


def _up_to(found: Frontier, seconds: float) -> tuple[RealisedPlan, ...]:
    place = bisect_right(found.plans, seconds, key=lambda each: each.iteration_seconds)
    return found.plans[: max(1, place)]
