"""The planner: pipeline, profile -> frontier -> plan. Pure computation, for researchers and the optimisation pod.

from perseus_planner import Pipeline, frontier, plan_for_deadline

found = frontier(profile, Pipeline(stages=8, microbatches=12))
stretched = plan_for_deadline(found, 3.2)
"""

from perseus_planner.objective import MaximumSlowdown, MinimumEnergy, NoSlowdown, Objective
from perseus_planner.pipeline import Pipeline
from perseus_planner.planning import PlanningError, frontier, plan, plan_for_deadline, select

__all__ = [
    "MaximumSlowdown",
    "MinimumEnergy",
    "NoSlowdown",
    "Objective",
    "Pipeline",
    "PlanningError",
    "frontier",
    "plan",
    "plan_for_deadline",
    "select",
]
