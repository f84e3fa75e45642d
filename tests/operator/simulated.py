"""Jobs in simulated time for the tests of decisions."""

from __future__ import annotations

from perseus_planner import Pipeline, frontier
from perseus_simulator.testing import example_profile

from benchmarks.stragglers.simulated_time import Change, SimulatedJob

FRONTIER = frontier(example_profile(stages=2), Pipeline(2, 4), plans=100)
T_STAR_RATIO = FRONTIER.plans[-1].iteration_seconds / FRONTIER.plans[0].iteration_seconds


def slow_between(pipeline: int, ratio: float, begin: float, end: float = 1e9) -> object:
    """A pipeline that is slow for a time."""
    return lambda index, seconds: ratio if index == pipeline and begin <= seconds < end else 1.0


def stretches(changes: list[Change]) -> list[Change]:
    """Changes that act on a straggler."""
    return [each for each in changes if each.stragglers.pipelines]


__all__ = ["FRONTIER", "T_STAR_RATIO", "SimulatedJob", "slow_between", "stretches"]
