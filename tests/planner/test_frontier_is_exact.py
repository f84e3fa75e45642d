"""The sweep's frontier against a linear program: every point of it is the relaxation's optimum."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from perseus_api.profile import Profile
from perseus_planner.costs import CostTable, cost_table
from perseus_planner.dag import Dag, build_dag
from perseus_planner.pipeline import Pipeline
from perseus_planner.sweep import Sweep, longest_path, sweep

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, profile_for, random_profile, shaped
from linear_program import Relaxation


def swept(profile: Profile, pipeline: Pipeline, points: int) -> tuple[Dag, CostTable, Sweep]:
    dag = build_dag(pipeline.orders(), pipeline)
    costs = cost_table(profile, dag.keys, dag.kind_rank, dag.kind_beside)
    shortest = longest_path(dag, np.array([hull.lengths[-1] for hull in costs.hulls], dtype=np.int64)[dag.kind])
    longest = longest_path(dag, np.array([hull.lengths[0] for hull in costs.hulls], dtype=np.int64)[dag.kind])
    targets = np.linspace(longest, shortest, points).astype(np.int64)
    return dag, costs, sweep(dag, costs, targets)


TIMES = 50


def random_dag(seed: int, profile: Profile) -> Dag:
    """Nodes of a profile's kinds with random precedences, some of them in parallel, some isolated."""
    random = np.random.default_rng(seed)
    count = int(random.integers(4, 22))
    keys = tuple(profile.measurements)
    edges = sorted({(a, b) for a in range(count) for b in range(a + 1, count) if random.random() < 2.5 / count})
    tails, heads = (np.array([edge[side] for edge in edges], dtype=np.int64) for side in (0, 1))

    def starts(ends: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=count))]).astype(np.int64)

    return Dag(
        stage=np.zeros(count, dtype=np.int64),
        position=np.arange(count),
        keys=keys,
        kind=random.integers(0, len(keys), count),
        before_start=starts(heads),
        before=tails[np.argsort(heads, kind="stable")],
        after_start=starts(tails),
        after=heads,
    )


def assert_equals_the_linear_program(dag: Dag, costs: CostTable) -> None:
    shortest, longest = (
        longest_path(dag, np.array([hull.lengths[end] for hull in costs.hulls], dtype=np.int64)[dag.kind])
        for end in (-1, 0)
    )
    found = sweep(dag, costs, np.array([shortest], dtype=np.int64))
    program = Relaxation(dag, costs)
    # The sweep ends a hair above `shortest` where rounding to picoseconds made the program infeasible.
    for time in np.linspace(longest, shortest + 10, TIMES).astype(np.int64).tolist():
        expected = program.cost_at(time)
        assert found.cost_at(time) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(100))
def test_a_pipelines_frontier_is_the_linear_programs_at_fifty_times(seed: int) -> None:
    pipeline = shaped(2 + seed % 3, 2 + seed % 4, GENERATED[seed % len(GENERATED)])
    profile = profile_for(pipeline, seed, clocks=3 + seed % 5)
    dag = build_dag(pipeline.orders(), pipeline)
    assert_equals_the_linear_program(dag, cost_table(profile, dag.keys, dag.kind_rank, dag.kind_beside))


@pytest.mark.parametrize("seed", range(100))
def test_any_graphs_frontier_is_the_linear_programs_at_fifty_times(seed: int) -> None:
    profile = random_profile(seed, stages=3, clocks=3 + seed % 8)
    dag = random_dag(seed, profile)
    assert_equals_the_linear_program(dag, cost_table(profile, dag.keys))


def test_gpt3_on_a100_is_the_linear_programs_optimum(a100: Profile) -> None:
    dag, costs, found = swept(a100, Pipeline(8, 12), points=9)
    program = Relaxation(dag, costs)
    for target in found.target_picoseconds[:-1]:
        assert found.cost_at(int(target)) == pytest.approx(program.cost_at(int(target)), rel=1e-9)


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
