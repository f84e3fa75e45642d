"""Orders that were seen to run, without numpy: which pipeline they are of, how their chunks lie, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from perseus_api.instructions import Instruction
from perseus_api.orders import PipelineOrders
from perseus_api.schedules import Schedule
from perseus_planner import Order, Pipeline, Step
from perseus_planner.given import load_orders
from perseus_planner.recorded import possible_placements, problem_of, recorded_pipeline

FORWARD, BACKWARD = Instruction.FORWARD, Instruction.BACKWARD


def document(orders: tuple[Order, ...], v_shape: bool = False) -> PipelineOrders:
    return PipelineOrders(
        order=tuple("".join(step.instruction.code for step in order) for order in orders),
        microbatches=tuple(tuple(step.microbatch for step in order) for order in orders),
        chunks=tuple(tuple(step.chunk for step in order) for order in orders),
        v_shape=v_shape,
    )


def breadth_first(microbatches: int) -> Order:
    """All forwards of one chunk, then of the other; then the backwards. Every rank runs the same."""
    forwards = [Step(FORWARD, each, chunk) for chunk in (0, 1) for each in range(microbatches)]
    return (*forwards, *(Step(BACKWARD, each, chunk) for chunk in (1, 0) for each in range(microbatches)))


@pytest.mark.parametrize(
    ("named", "v_shape"),
    [
        (Pipeline(4, 8), False),
        (Pipeline(4, 8, Schedule.GPIPE), False),
        (Pipeline(4, 8, Schedule.INTERLEAVED_1F1B, chunks=2), False),
        (Pipeline(4, 8, Schedule.INTERLEAVED_1F1B, chunks=3), False),
        (Pipeline(3, 6, Schedule.ZB_H1, chunks=2), False),
        (Pipeline(2, 4, Schedule.ZBV, chunks=2), True),
        (Pipeline(4, 8, Schedule.ZBV, chunks=2), True),
        (Pipeline(1, 4, Schedule.ZBV, chunks=2), False),
    ],
    ids=lambda each: f"{each.schedule.value}-{each.stages}" if isinstance(each, Pipeline) else None,
)
def test_how_chunks_lie_is_told_by_what_can_run(named: Pipeline, v_shape: bool) -> None:
    seen = PipelineOrders.decode(document(named.orders()).encode())
    pipeline = recorded_pipeline(seen)
    assert pipeline.orders() == named.orders()
    assert (pipeline.microbatches, pipeline.chunks) == (named.microbatches, named.chunks)
    assert possible_placements(pipeline) == (v_shape,)
    assert load_orders(seen.text, v_shape) == named.orders()


def test_orders_that_fit_both_are_said_to() -> None:
    pipeline = recorded_pipeline(document((breadth_first(4),) * 3))
    assert possible_placements(pipeline) == (False, True)


def test_orders_that_can_run_in_no_placement_are_told_by_stage_and_entry() -> None:
    first, second = Pipeline(2, 2).orders()
    pipeline = recorded_pipeline(document((first, second[1:])))
    assert possible_placements(pipeline) == ()
    assert problem_of(pipeline) == (
        "stage 0 entry 1, backward of microbatch 0 waits for what never comes"
        if first[1].instruction is BACKWARD
        else "stage 0 entry 2, backward of microbatch 0 waits for what never comes"
    )


def test_a_stage_that_lacks_a_chunk_is_named() -> None:
    pipeline = recorded_pipeline(document((breadth_first(2), Pipeline(2, 2).orders()[1])))
    assert problem_of(pipeline) == "stage 1 runs no forward of chunk 1: each stage must run all of 2"


def test_the_digest_tells_orders_and_placements_apart() -> None:
    one = document(Pipeline(2, 4).orders())
    digests = {one.digest, document(Pipeline(2, 5).orders()).digest, replace_v(one).digest}
    assert len(digests) == 3
    assert recorded_pipeline(one, tensor_parallel=4) == replace(recorded_pipeline(one), tensor_parallel=4)


def replace_v(orders: PipelineOrders) -> PipelineOrders:
    return orders.model_copy(update={"v_shape": True})
