"""The planner: profile, pipeline, objective -> frontier, plan. Pure computation, for researchers and the optimiser.

    from perseus_planner import MaximumSlowdown, Pipeline, frontier, plan, plan_for_deadline

    best = plan(profile, Pipeline(stages=8, microbatches=12), MaximumSlowdown(1.0))
    found = frontier(profile, Pipeline(stages=8, microbatches=12))
    stretched = plan_for_deadline(found, 3.2)

What only looks plans up (the operator) needs neither numpy nor numba: `frontier` and `plan` bring them when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perseus_planner.errors import PlanningError
from perseus_planner.lookup import plan_for_deadline, select
from perseus_planner.objective import (
    Deadline,
    MaximumSlowdown,
    MinimumEnergy,
    NoSlowdown,
    Objective,
    PowerBudget,
    Straggler,
)
from perseus_planner.pipeline import Order, Pipeline, PipelineError, Step

if TYPE_CHECKING:
    from perseus_planner.given import load_orders
    from perseus_planner.pipelines import PlannedPipelines, plan_pipelines
    from perseus_planner.planning import Planned, exact_frontier, frontier, plan
    from perseus_planner.switching import SwitchBound

__all__ = [
    "Deadline",
    "MaximumSlowdown",
    "MinimumEnergy",
    "NoSlowdown",
    "Objective",
    "Order",
    "Pipeline",
    "PipelineError",
    "Planned",
    "PlannedPipelines",
    "PlanningError",
    "PowerBudget",
    "Step",
    "Straggler",
    "SwitchBound",
    "exact_frontier",
    "frontier",
    "load_orders",
    "plan",
    "plan_for_deadline",
    "plan_pipelines",
    "select",
]
# What needs numpy and numba, by the module that brings it.
_LATER = {
    "Planned": "planning",
    "PlannedPipelines": "pipelines",
    "SwitchBound": "switching",
    "exact_frontier": "planning",
    "frontier": "planning",
    "load_orders": "given",
    "plan": "planning",
    "plan_pipelines": "pipelines",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"perseus_planner.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
