"""Plans against the best there are: for small pipelines a mixed-integer solver finds little better."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from perseus_planner.planning import plan_for_limit
from perseus_planner.problem import Problem
from perseus_planner.realise import SEARCH_STEPS

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, profile_for, shaped
from mixed_integer import least_cost

SLOWDOWNS = (0.0, 0.01, 0.05)
POINTS = 0.06


@pytest.mark.parametrize("seed", range(11))
def test_a_small_pipelines_plan_saves_what_the_best_plan_saves(seed: int) -> None:
    pipeline = shaped(2 + seed % 2, 3 + seed % 2, GENERATED[seed % len(GENERATED)])
    problem = Problem(profile_for(pipeline, seed, clocks=5 + seed % 5), pipeline)
    limit = int(problem.shortest * (1 + SLOWDOWNS[seed % 3]))
    found = plan_for_limit(problem, limit, SEARCH_STEPS, waiting_is_free=True)
    cost = found.iteration_joules - problem.waiting_watts * found.iteration_seconds
    best = least_cost(problem, limit)
    assert -1e-5 * found.fastest_joules <= cost - best <= POINTS / 100 * found.fastest_joules
