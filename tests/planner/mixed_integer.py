"""Plans as a mixed-integer program, solved by HiGHS: the best plan there is, for pipelines that are small enough."""

from __future__ import annotations

import sys
from pathlib import Path

import highspy
from perseus_planner.costs import PICOSECONDS
from perseus_planner.problem import Problem

sys.path.insert(0, str(Path(__file__).parent))
from linear_program import silent_solver

_SECONDS = 60.0


def least_cost(problem: Problem, limit_picoseconds: int) -> float:
    """Least cost in joules of any choice of measured clocks within the limit; cost is as in `Problem.cost_joules`."""
    dag, costs = problem.dag, problem.costs
    limit = limit_picoseconds / PICOSECONDS * (1 + 1e-7)  # more than the solver's tolerances take away
    solver = silent_solver()
    for option, value in (("time_limit", _SECONDS), ("mip_rel_gap", 0.0)):
        solver.setOptionValue(option, value)
    begins = [solver.addVariable(0, limit) for _ in range(dag.nodes)]
    ends, total = [], 0.0
    for node in range(dag.nodes):
        options = costs.options[dag.kind[node]]
        taken = [solver.addBinary() for _ in options]
        solver.addConstr(sum(taken) == 1)
        ends.append(
            begins[node] + sum(each.picoseconds / PICOSECONDS * one for each, one in zip(options, taken, strict=True))
        )
        total = total + sum(each.cost_joules * one for each, one in zip(options, taken, strict=True))
        solver.addConstr(ends[node] <= limit)
        for other in dag.before[dag.before_start[node] : dag.before_start[node + 1]]:
            solver.addConstr(ends[other] <= begins[node])
    solver.minimize(total)
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(solver.getInfo().objective_function_value)
