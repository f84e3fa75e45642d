"""Orders of the schedules, their graph, and the command that engineers try first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline
from perseus_planner.dag import build_dag
from perseus_simulator.workload.placement import Placement

sys.path.insert(0, str(Path(__file__).parent))

F, B = Instruction.FORWARD, Instruction.BACKWARD


def test_1f1b_warms_up_alternates_and_cools_down() -> None:
    letters = ["".join(each.code for each, _ in order) for order in Pipeline(4, 5).orders()]
    assert letters == ["FFFFBFBBBB", "FFFBFBFBBB", "FFBFBFBFBB", "FBFBFBFBFB"]


def test_gpipe_runs_all_forwards_first() -> None:
    assert Pipeline(2, 3, Schedule.GPIPE).orders()[0] == ((F, 0), (F, 1), (F, 2), (B, 0), (B, 1), (B, 2))


@given(st.integers(1, 12), st.integers(1, 20), st.sampled_from(list(Schedule)))
def test_every_microbatch_runs_once_forward_and_once_backward(stages: int, count: int, schedule: Schedule) -> None:
    for order in Pipeline(stages, count, schedule).orders():
        assert sorted(order) == sorted([(each, index) for each in (F, B) for index in range(count)])
        for index in range(count):
            assert order.index((F, index)) < order.index((B, index))


@given(st.integers(1, 8), st.integers(1, 12), st.sampled_from(list(Schedule)))
def test_the_simulated_job_runs_the_planners_order(stages: int, count: int, schedule: Schedule) -> None:
    for stage, order in enumerate(Pipeline(stages, count, schedule).orders()):
        place = Placement(stage, stages, 1, 1, count, schedule, "GPU-0", ())
        assert tuple(place.order()) == order


def test_orders_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="wait for each other"):
        build_dag((((B, 0), (F, 0)),))


def test_an_order_that_waits_for_what_never_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 1: forward of microbatch 0 waits for forward on stage 0"):
        build_dag((((F, 1),), ((F, 0),)))


@pytest.mark.parametrize("wrong", [(0, 1), (1, 0)])
def test_empty_pipelines_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pipeline(*wrong)
