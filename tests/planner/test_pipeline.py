"""Orders of the schedules, their graph, and the command that engineers try first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule
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


CHUNKS = {"Interleaved1F1B": 3, "ZBH1": 2, "ZBV": 2}


@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from([each for each in Schedule if each.value != "Custom"]))
def test_the_simulated_job_runs_the_planners_order_and_knows_whom_it_talks_to(
    stages: int, rounds: int, schedule: Schedule
) -> None:
    chunks = CHUNKS.get(schedule.value, 1)
    pipeline = Pipeline(stages, rounds * stages, schedule, chunks=chunks)
    given_to_all = {
        names.ENV_STAGES: stages, names.ENV_PIPELINES: 2, names.ENV_MICROBATCHES: rounds * stages,
        names.ENV_CHUNKS: chunks, names.ENV_SCHEDULE: schedule.value, names.ENV_GPU_UUID: "GPU-0",
        names.ENV_COORDINATOR: "job-0.job",
    }  # fmt: skip
    ranks = [
        Placement.from_environment({name: str(each) for name, each in {**given_to_all, names.ENV_RANK: rank}.items()})
        for rank in range(2 * stages)
    ]
    assert [ranks[rank].order() for rank in range(stages)] == list(pipeline.orders())
    lies = {pipeline.virtual_stage(rank, chunk): rank for rank in range(stages) for chunk in range(chunks)}
    for stage in range(1, pipeline.virtual_stages):
        one, other = lies[stage - 1], lies[stage]
        assert (ranks[one].holder(stage), ranks[stages + one].holder(stage)) == (other, stages + other)
        assert one == other or {one, other} <= {*ranks[one].neighbours, *ranks[other].neighbours}
    for each in ranks:
        assert all(each.rank in ranks[peer].neighbours for peer in each.neighbours), "both sides expect the connection"


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
