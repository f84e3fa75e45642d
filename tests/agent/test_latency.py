"""The histogram of calls: what it tells Prometheus is what was counted."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from agent_process import AgentProcess, Trainer, eventually, make_plan
from hypothesis import given
from hypothesis import strategies as st
from perseus_daemonset.latency import BUCKETS_SECONDS, CallLatency
from perseus_simulator.node import SimulatedNode
from test_metrics import series, value


@given(st.lists(st.integers(0, 2 * 10**8)), st.lists(st.integers(0, 2 * 10**8)))
def test_buckets_are_cumulative_over_all_gpus(first: list[int], second: list[int]) -> None:
    latencies = CallLatency(), CallLatency()
    for latency, times in zip(latencies, (first, second), strict=True):
        for nanoseconds in times:
            latency.observe(nanoseconds)
    buckets, seconds = CallLatency.histogram(latencies)
    every = sorted(first + second)
    for (bound, count), limit in zip(buckets, BUCKETS_SECONDS, strict=False):
        assert (float(bound), count) == (limit, bisect_left(every, round(limit * 1e9) + 1))
    assert buckets[-1] == ("+Inf", len(every))
    assert seconds == pytest.approx(sum(every) / 1e9)


def test_a_boundary_that_changes_the_clock_is_counted_once(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    trainer.run(1, "F")
    eventually(lambda: node.gpus[0].locked_range() == (1005, 1005), "the next clock is locked")
    eventually(lambda: value(agent, "perseus_boundary_to_call_seconds_count") == 2, "both calls are counted")
    assert series(agent, "perseus_boundary_to_call_seconds_bucket", le="+Inf").popitem()[1] == 2
    assert 0 < value(agent, "perseus_boundary_to_call_seconds_sum") < 10
