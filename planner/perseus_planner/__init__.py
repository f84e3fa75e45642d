"""The planner: pipeline, profile -> frontier -> plan. Pure computation, for researchers and the optimisation pod.

    from perseus_planner import Pipeline, frontier, plan_for_deadline

    found = frontier(profile, Pipeline(stages=8, microbatches=12))
    stretched = plan_for_deadline(found, 3.2)

What only looks plans up (the operator) needs neither numpy nor numba: `frontier` and `plan` bring them when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perseus_planner.lookup import plan_for_deadline, select
from perseus_planner.objective import MaximumSlowdown, MinimumEnergy, NoSlowdown, Objective
from perseus_planner.pipeline import Order, Pipeline, PipelineError, Step

if TYPE_CHECKING:
    from perseus_planner.given import load_orders
    from perseus_planner.planning import PlanningError, frontier, plan

__all__ = [
    "MaximumSlowdown",
    "MinimumEnergy",
    "NoSlowdown",
    "Objective",
    "Order",
    "Pipeline",
    "PipelineError",
    "PlanningError",
    "Step",
    "frontier",
    "load_orders",
    "plan",
    "plan_for_deadline",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in ("PlanningError", "frontier", "plan"):
        from perseus_planner import planning

        return getattr(planning, name)
    if name == "load_orders":
        from perseus_planner.given import load_orders

        return load_orders
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
