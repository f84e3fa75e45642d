"""Orders of the schedules, their graph, and the command that engineers try first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.schedules import JobSchedule, Schedule
from perseus_planner import Pipeline, Step
from perseus_planner.dag import build_dag
from perseus_simulator.workload.placement import Placement

sys.path.insert(0, str(Path(__file__).parent))

F, B = Instruction.FORWARD, Instruction.BACKWARD


def test_1f1b_warms_up_alternates_and_cools_down() -> None:
    letters = ["".join(step.instruction.code for step in order) for order in Pipeline(4, 5).orders()]
    assert letters == ["FFFFBFBBBB", "FFFBFBFBBB", "FFBFBFBFBB", "FBFBFBFBFB"]


def test_gpipe_runs_all_forwards_first() -> None:
    expected = tuple(Step(each, index) for each in (F, B) for index in range(3))
    assert Pipeline(2, 3, Schedule.GPIPE).orders()[0] == expected


@given(st.integers(1, 8), st.integers(1, 12), st.sampled_from(list(JobSchedule)))
def test_the_simulated_job_runs_the_planners_order(stages: int, count: int, schedule: JobSchedule) -> None:
    for stage, order in enumerate(Pipeline(stages, count, Schedule(schedule.value)).orders()):
        place = Placement(stage, stages, 1, 1, count, schedule, "GPU-0", ())
        assert tuple(Step(*each) for each in place.order()) == order


def test_orders_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="wait for each other"):
        build_dag(((Step(B, 0), Step(F, 0)),))


def test_an_order_that_waits_for_what_never_runs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stage 1 entry 0 .* waits for forward of microbatch 0 on stage 0, which"):
        build_dag(((Step(F, 1),), (Step(F, 0),)))


@pytest.mark.parametrize("wrong", [(0, 1), (1, 0)])
def test_empty_pipelines_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pipeline(*wrong)
