"""The sweep's frontier against a linear program: every point of it is the relaxation's optimum."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from perseus_api.profile import Profile
from perseus_api.schedules import Schedule
from perseus_planner.costs import NANOWATTS, PICOSECONDS, CostTable, cost_table
from perseus_planner.dag import Dag, build_dag
from perseus_planner.pipeline import Pipeline
from perseus_planner.sweep import Sweep, longest_path, sweep
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, profile_for, random_profile, shaped


def relaxation(dag: Dag, costs: CostTable, limit_picoseconds: int) -> float:
    """Least cost by HiGHS: minimise the hulls' epigraphs subject to precedences and the limit."""
    count = dag.nodes  # variables: ends (count), durations (count), costs (count)
    rows, columns, values, bounds = [], [], [], []

    def constraint(entries: list[tuple[int, float]], bound: float) -> None:
        for column, value in entries:
            rows.append(len(bounds))
            columns.append(column)
            values.append(value)
        bounds.append(bound)

    for node in range(count):
        constraint([(count + node, 1.0), (node, -1.0)], 0.0)
        for each in dag.before[dag.before_start[node] : dag.before_start[node + 1]]:
            constraint([(int(each), 1.0), (count + node, 1.0), (node, -1.0)], 0.0)
        constraint([(node, 1.0)], limit_picoseconds / PICOSECONDS)
        hull = costs.hulls[dag.kind[node]]
        # Slopes as the sweep has them: whole nanowatts.
        slope = 0
        corner = hull.corner_joules[0]
        for index in range(len(hull.lengths) - 1):
            slope += hull.capacities[index]
            longer, shorter = hull.lengths[index] / PICOSECONDS, hull.lengths[index + 1] / PICOSECONDS
            watts = slope / NANOWATTS
            constraint([(count + node, -watts), (2 * count + node, -1.0)], -(corner + watts * longer))
            corner += watts * (longer - shorter)
        constraint([(2 * count + node, -1.0)], -hull.corner_joules[0])
    hulls = [costs.hulls[kind] for kind in dag.kind]
    limits = [(0, None)] * count
    limits += [(hull.lengths[-1] / PICOSECONDS, hull.lengths[0] / PICOSECONDS) for hull in hulls]
    limits += [(None, None)] * count
    objective = np.concatenate([np.zeros(2 * count), np.ones(count)])
    matrix = csr_matrix((values, (rows, columns)), shape=(len(bounds), 3 * count))
    found = linprog(objective, A_ub=matrix, b_ub=bounds, bounds=limits, method="highs")
    assert found.status == 0, found.message
    return float(found.fun)


def swept(profile: Profile, pipeline: Pipeline, points: int) -> tuple[Dag, CostTable, Sweep]:
    dag = build_dag(pipeline.orders(), pipeline)
    costs = cost_table(profile, dag.keys, dag.kind_rank, dag.kind_beside)
    shortest = longest_path(dag, np.array([hull.lengths[-1] for hull in costs.hulls], dtype=np.int64)[dag.kind])
    longest = longest_path(dag, np.array([hull.lengths[0] for hull in costs.hulls], dtype=np.int64)[dag.kind])
    targets = np.linspace(longest, shortest, points).astype(np.int64)
    return dag, costs, sweep(dag, costs, targets)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("schedule", GENERATED)
def test_every_point_is_the_linear_programs_optimum(seed: int, schedule: Schedule) -> None:
    pipeline = shaped(2 + seed % 4, 2 + seed % 5, schedule)
    dag, costs, found = swept(profile_for(pipeline, seed, clocks=3 + seed % 7), pipeline, points=6)
    for target in found.target_picoseconds:
        assert found.cost_at(int(target)) == pytest.approx(relaxation(dag, costs, int(target)), rel=1e-6, abs=1e-6)


def test_gpt3_on_a100_is_the_linear_programs_optimum(a100: Profile) -> None:
    dag, costs, found = swept(a100, Pipeline(8, 12), points=5)
    for target in found.target_picoseconds:
        assert found.cost_at(int(target)) == pytest.approx(relaxation(dag, costs, int(target)), rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_recorded_events_prove_the_cost(seed: int) -> None:
    """A certificate from below and above: the events are feasible, and their durations cost what the frontier says."""
    profile = random_profile(seed, stages=3, clocks=6)
    dag, costs, found = swept(profile, Pipeline(3, 4), points=9)
    for target, events in zip(found.target_picoseconds, found.events, strict=True):
        begins, ends = events[0::2], events[1::2]
        assert ends.max() <= target
        for node in range(dag.nodes):
            for each in dag.before[dag.before_start[node] : dag.before_start[node + 1]]:
                assert ends[each] <= begins[node]
        cost = 0.0
        for node in range(dag.nodes):
            hull = costs.hulls[dag.kind[node]]
            duration = min(max(int(ends[node] - begins[node]), hull.lengths[-1]), hull.lengths[0])
            assert ends[node] - begins[node] >= hull.lengths[-1]
            cost += float(np.interp(duration, hull.lengths[::-1], hull.corner_joules[::-1]))
        assert cost == pytest.approx(found.cost_at(int(target)), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_frontier_falls_and_is_convex(seed: int) -> None:
    _, _, found = swept(random_profile(seed, stages=4, clocks=8), Pipeline(4, 6), points=3)
    times, costs = found.picoseconds[::-1].astype(float), found.cost_joules[::-1]
    slopes = np.diff(costs) / np.diff(times)
    assert (slopes < 0).all()
    assert (np.diff(slopes) >= -1e-18 - 1e-9 * np.abs(slopes[1:])).all()
