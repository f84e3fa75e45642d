"""The relaxation as a linear program, solved by HiGHS: the planner's reference, which shares only hulls with it."""

from __future__ import annotations

import highspy
import numpy as np
from perseus_planner.costs import PICOSECONDS, CostTable
from perseus_planner.dag import Dag


def silent_solver() -> highspy.Highs:
    """Return a solver with one thread: all of a process must have as many, or HiGHS refuses the later ones."""
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    return solver


class Relaxation:
    """Least cost at any time; one model, of which only the time changes from one solve to the next."""

    def __init__(self, dag: Dag, costs: CostTable) -> None:
        """Build the model: a begin for each node, and how much of each segment of its hull it uses."""
        self._solver = silent_solver()
        for tolerance in ("primal_feasibility_tolerance", "dual_feasibility_tolerance"):
            self._solver.setOptionValue(tolerance, 1e-10)
        infinity = highspy.kHighsInf
        self._time = 0
        self._solver.addVar(0.0, infinity)
        base, columns, shortest, segments = 0.0, 1, [], []
        for _ in range(dag.nodes):
            self._solver.addVar(0.0, infinity)
        columns += dag.nodes
        for node in range(dag.nodes):
            hull = costs.hulls[dag.kind[node]]
            lengths = [each / PICOSECONDS for each in hull.lengths[::-1]]
            joules = hull.corner_joules[::-1]
            base += joules[0]
            shortest.append(lengths[0])
            mine = []
            for index in range(len(lengths) - 1):
                self._solver.addVar(0.0, lengths[index + 1] - lengths[index])
                slope = (joules[index + 1] - joules[index]) / (lengths[index + 1] - lengths[index])
                self._solver.changeColCost(columns, slope)
                mine.append(columns)
                columns += 1
            segments.append(mine)
        self._base = base
        for node in range(dag.nodes):
            for each in dag.before[dag.before_start[node] : dag.before_start[node + 1]]:
                self._row([1 + node, 1 + int(each), *segments[each]], shortest[each])
            if dag.after_start[node + 1] == dag.after_start[node]:
                self._row([self._time, 1 + node, *segments[node]], shortest[node])

    def _row(self, columns: list[int], least: float) -> None:
        values = [1.0] + [-1.0] * (len(columns) - 1)
        self._solver.addRow(least, highspy.kHighsInf, len(columns), np.array(columns, np.int32), np.array(values))

    def cost_at(self, picoseconds: int) -> float:
        """Least cost in joules of any plan of the relaxation with at most this time."""
        seconds = picoseconds / PICOSECONDS
        self._solver.changeColBounds(self._time, 0.0, seconds)
        self._solver.run()
        assert self._solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return float(self._base + self._solver.getInfo().objective_function_value)
