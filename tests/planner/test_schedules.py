"""What each schedule promises: completeness, no deadlock, warm-up, activations held, bubbles; and in time."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.profile import Profile
from perseus_api.schedules import JobSchedule, Schedule
from perseus_planner import Pipeline, PipelineError, PlanningError, Step, frontier
from perseus_planner.dag import build_dag

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, profile_for, random_profile, shaped
from player import seconds_of

F, B, BI, W, R = (
    Instruction.FORWARD,
    Instruction.BACKWARD,
    Instruction.BACKWARD_INPUT,
    Instruction.BACKWARD_WEIGHT,
    Instruction.RECOMPUTE,
)  # fmt: skip
EQUAL = {F: 1.0, BI: 1.0, W: 1.0, B: 2.0}
SPLIT = (Schedule.ZB_H1, Schedule.ZBV)


def activations_held(pipeline: Pipeline) -> list[int]:
    """By rank, the most chunks' activations held at once: from the forward to the weights' gradient."""
    found = []
    for order in pipeline.orders():
        held = most = 0
        for step in order:
            held += {F: 1, B: -1, W: -1}.get(step.instruction, 0)
            most = max(most, held)
        found.append(most)
    return found


@given(st.integers(1, 9), st.integers(1, 24), st.sampled_from(GENERATED))
@settings(deadline=None)
def test_every_instruction_runs_exactly_once_and_nothing_deadlocks(
    stages: int, microbatches: int, schedule: Schedule
) -> None:
    pipeline = shaped(stages, microbatches, schedule)
    kinds = {F, BI, W} if schedule in SPLIT else {F, B}
    for rank, order in enumerate(pipeline.orders()):
        wanted = kinds | ({R} if schedule is Schedule.EARLY_RECOMPUTE_1F1B and rank < stages - 1 else set())
        expected = {
            Step(kind, index, chunk)
            for kind in wanted
            for index in range(pipeline.microbatches)
            for chunk in range(pipeline.chunks)
        }
        assert Counter(order) == Counter(expected)
    dag = build_dag(pipeline.orders(), pipeline)
    for node in range(dag.nodes):  # The numbering is topological, which no graph with a circle has.
        assert (dag.before[dag.before_start[node] : dag.before_start[node + 1]] < node).all()


@given(st.integers(1, 9), st.integers(1, 24))
def test_1f1b_warms_up_with_one_forward_for_each_rank_after(stages: int, microbatches: int) -> None:
    for rank, order in enumerate(Pipeline(stages, microbatches).orders()):
        first = [step.instruction for step in order].index(B)
        assert first == min(microbatches, stages - rank)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 4))
def test_interleaving_warms_up_with_a_round_for_each_chunk_but_one(stages: int, rounds: int, chunks: int) -> None:
    pipeline = Pipeline(stages, stages * rounds, Schedule.INTERLEAVED_1F1B, chunks=chunks)
    for rank, order in enumerate(pipeline.orders()):
        first = [step.instruction for step in order].index(B)
        warmup = (chunks - 1) * stages + 2 * (stages - 1 - rank)
        assert first == min(pipeline.microbatches * chunks, warmup + 1)
        assert order[:stages] == tuple(Step(F, index, 0) for index in range(stages))
        assert order[stages : stages + 1] in (((),), (Step(F, 0, 1),))


@given(st.integers(1, 9), st.integers(1, 24))
def test_zb_h1_holds_no_more_activations_than_1f1b(stages: int, microbatches: int) -> None:
    whole = activations_held(Pipeline(stages, microbatches))
    split = activations_held(Pipeline(stages, microbatches, Schedule.ZB_H1))
    assert max(split) == max(whole) == min(stages, microbatches)


@given(st.integers(1, 9), st.integers(1, 40))
def test_zbv_holds_on_every_rank_what_1f1b_holds_on_the_first(stages: int, microbatches: int) -> None:
    held = activations_held(Pipeline(stages, microbatches, Schedule.ZBV, chunks=2))
    assert max(held) <= 2 * stages  # of half the size
    if microbatches >= 2 * stages:
        assert held == [2 * stages] * stages


@given(st.integers(1, 8), st.integers(0, 16))
def test_1f1bs_bubble_is_a_microbatch_for_each_rank_but_one(stages: int, more: int) -> None:
    microbatches = stages + more
    assert seconds_of(Pipeline(stages, microbatches), EQUAL) == pytest.approx(3 * (microbatches + stages - 1))


@given(st.integers(2, 8), st.integers(0, 16))
def test_zb_h1s_bubble_is_a_third_of_1f1bs(stages: int, more: int) -> None:
    microbatches = stages + more
    seconds = seconds_of(Pipeline(stages, microbatches, Schedule.ZB_H1), EQUAL)
    assert seconds - 3 * microbatches == pytest.approx(stages - 1)


@given(st.integers(2, 8), st.integers(0, 16))
def test_zbvs_bubble_is_a_sixth_of_1f1bs(stages: int, more: int) -> None:
    """Half a forward for each rank but one, where a virtual stage is half as large as a 1F1B stage."""
    microbatches = 2 * stages + more
    half = {instruction: seconds / 2 for instruction, seconds in EQUAL.items()}
    seconds = seconds_of(Pipeline(stages, microbatches, Schedule.ZBV, chunks=2), half)
    assert seconds - 3 * microbatches == pytest.approx((stages - 1) / 2)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(2, 4))
@settings(deadline=None)
def test_interleavings_bubble_is_smaller_by_the_number_of_chunks(stages: int, rounds: int, chunks: int) -> None:
    microbatches = stages * rounds
    part = {instruction: seconds / chunks for instruction, seconds in EQUAL.items()}
    pipeline = Pipeline(stages, microbatches, Schedule.INTERLEAVED_1F1B, chunks=chunks)
    bubble = seconds_of(pipeline, part) - 3 * microbatches
    assert bubble == pytest.approx((seconds_of(Pipeline(stages, microbatches), EQUAL) - 3 * microbatches) / chunks)


@given(st.integers(2, 8), st.integers(1, 16))
def test_early_recomputation_hides_in_the_wait_for_the_gradient(stages: int, microbatches: int) -> None:
    early = seconds_of(Pipeline(stages, microbatches, Schedule.EARLY_RECOMPUTE_1F1B), {F: 1.0, R: 1.0, B: 2.0})
    late = seconds_of(Pipeline(stages, microbatches), {F: 1.0, B: 3.0})
    assert early < late


def test_the_recomputation_is_the_step_before_its_backward_and_the_last_stage_has_none() -> None:
    letters = [
        "".join(step.instruction.code for step in order)
        for order in Pipeline(3, 4, Schedule.EARLY_RECOMPUTE_1F1B).orders()
    ]
    assert letters == ["FFFRBFRBRBRB", "FFRBFRBFRBRB", "FBFBFBFB"]


def test_virtual_stages_are_dealt_out_in_turn_or_as_a_v() -> None:
    turn = Pipeline(3, 3, Schedule.INTERLEAVED_1F1B, chunks=2)
    assert [turn.virtual_stage(rank, chunk) for chunk in (0, 1) for rank in range(3)] == [0, 1, 2, 3, 4, 5]
    folded = Pipeline(3, 3, Schedule.ZBV, chunks=2)
    assert [folded.virtual_stage(rank, chunk) for chunk in (0, 1) for rank in range(3)] == [0, 1, 2, 5, 4, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"chunks": 2}, "1F1B has 1 chunk on each rank, not 2"),
        ({"schedule": Schedule.ZBV}, "set chunks to 2"),
        ({"schedule": Schedule.INTERLEAVED_1F1B}, "2 or more"),
        ({"schedule": Schedule.CUSTOM}, "orders must be given"),
        ({"orders_given": ((Step(F, 0), Step(B, 0)),) * 2}, "only for it"),
        (
            {"schedule": Schedule.CUSTOM, "orders_given": ((Step(F, 0), Step(B, 0)),)},
            "for 1 stages, the pipeline has 2",
        ),
        ({"schedule": Schedule.CUSTOM, "orders_given": ((Step(F, 0),), (Step(F, 9),))}, "stage 1 entry 0 .* 9"),
        ({"schedule": Schedule.CUSTOM, "orders_given": ((Step(F, 0),), ())}, "given for stage 1 is empty"),
        ({"v_shape": True}, "v_shape is for the schedule Custom"),
        ({"chunks": 0}, "at least 1"),
    ],
)
def test_a_shape_that_no_pipeline_has_is_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        Pipeline(2, 4, **arguments)  # type: ignore[arg-type]


def test_interleaving_says_which_numbers_of_microbatches_it_can_do_with() -> None:
    with pytest.raises(PipelineError, match="use a multiple of 4 microbatches"):
        Pipeline(4, 13, Schedule.INTERLEAVED_1F1B, chunks=2).orders()


def test_a_profile_of_the_ranks_alone_is_not_enough_for_chunks() -> None:
    profile = random_profile(1, 2, 3)
    with pytest.raises(PlanningError, match="2 ranks of 2 chunks are 4 virtual stages"):
        frontier(profile, Pipeline(2, 4, Schedule.INTERLEAVED_1F1B, chunks=2))


def test_a_profile_without_split_backwards_is_not_enough_for_zero_bubble(a100: Profile) -> None:
    with pytest.raises(PlanningError, match="no backward_input of stage 0: the schedule ZBH1 runs it"):
        frontier(a100, Pipeline(8, 8, Schedule.ZB_H1))


def test_documents_name_chunks_where_there_are_several() -> None:
    pipeline = Pipeline(2, 3, Schedule.ZBV, chunks=2)
    found = frontier(profile_for(pipeline, 3, 4), pipeline, plans=5)
    assert found.chunks == tuple(tuple(step.chunk for step in order) for order in pipeline.orders())
    assert frontier(random_profile(3, 2, 4), Pipeline(2, 3), plans=5).chunks == ()


@pytest.mark.parametrize("text", ["interleaved-1f1b", "Interleaved1F1B", "INTERLEAVED_1F1B", "interleaved 1f1b"])
def test_names_are_read_however_they_are_spelt(text: str) -> None:
    assert Schedule.parse(text) is Schedule.INTERLEAVED_1F1B


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'dualpipe' is unknown; use one of 1F1B, GPipe, Interleaved1F1B, .*Custom"):
        Schedule.parse("dualpipe")


def test_each_schedule_is_found_by_its_name_and_a_jobs_are_among_them() -> None:
    assert [Schedule.parse(each.value.lower()) for each in Schedule] == list(Schedule)
    assert {each.planned for each in JobSchedule} == set(Schedule), "a job may name all that can be planned"
    assert [each for each in JobSchedule if each.planned.value != each.value] == [JobSchedule.RECORDED]


def test_the_largest_pipelines_graph_is_built_within_two_seconds() -> None:
    begin = time.process_time()
    pipeline = Pipeline(64, 512)
    assert build_dag(pipeline.orders(), pipeline).nodes == 2 * 64 * 512
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("schedule", GENERATED)
def test_the_longest_orders_are_made_within_seconds(schedule: Schedule) -> None:
    pipeline = shaped(16, 4096, schedule)
    begin = time.process_time()
    assert sum(len(order) for order in pipeline.orders()) >= 2 * 16 * 4096
    assert time.process_time() - begin < 5  # A tenth of it is usual; work that grows with the square takes minutes.
