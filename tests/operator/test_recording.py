"""Which orders a job's ranks run, decided from their agents' reports: equal over pipelines, or one clear sentence."""

from __future__ import annotations

from typing import Any

import pytest
from perseus_api.conditions import Reason
from perseus_api.measurements import RankOrder, RankReport
from perseus_api.messages import ChunkPlacement
from perseus_api.orders import PipelineOrders
from perseus_api.schedules import Schedule
from perseus_operator.recording import Unrecorded, orders_of
from perseus_planner import Order, Pipeline
from perseus_planner.recorded import recorded_pipeline

ZBV = Pipeline(2, 4, Schedule.ZBV, chunks=2)
GPIPE = Pipeline(2, 4, Schedule.GPIPE)


def ran(order: Order, **changed: Any) -> RankOrder:
    known = {
        "letters": "".join(step.instruction.code for step in order),
        "microbatches": tuple(step.microbatch for step in order),
        "chunks": tuple(step.chunk for step in order) if any(step.chunk for step in order) else (),
        "repeats": 7,
    }
    return RankOrder.model_validate({**known, **changed})


def report(pipeline: int, stage: int, order: RankOrder | None, **changed: Any) -> RankReport:
    known = {
        "namespace": "team", "job": "train", "job_uid": "1", "pipeline": pipeline, "stage": stage, "tensor_rank": 0,
        "gpu": f"GPU-{pipeline}-{stage}", "gpu_model": "A100", "driver": "580", "supported_clocks": (1410,),
        "iteration": 5, "connected": True, "order": order,
    }  # fmt: skip
    return RankReport.model_validate({**known, **changed})


def reports(shape: Pipeline, pipelines: int = 2, **changed: Any) -> list[RankReport]:
    return [
        report(pipeline, stage, ran(order, **changed))
        for pipeline in range(pipelines)
        for stage, order in enumerate(shape.orders())
    ]


def problem(found: PipelineOrders | Unrecorded) -> tuple[Reason, str]:
    assert isinstance(found, Unrecorded), found
    return found.reason, found.message


def test_orders_are_those_that_all_pipelines_run() -> None:
    found = orders_of(reports(ZBV), 2)
    assert isinstance(found, PipelineOrders)
    assert found.v_shape, "nothing else can run, and nobody said so"
    assert recorded_pipeline(found).orders() == ZBV.orders()


@pytest.mark.parametrize("placement", [ChunkPlacement.UNKNOWN, ChunkPlacement.LOOP])
def test_a_rank_with_one_chunk_has_no_placement(placement: ChunkPlacement) -> None:
    found = orders_of(reports(GPIPE, placement=placement), 2)
    assert isinstance(found, PipelineOrders)
    assert (found.chunks, found.v_shape) == ((), False)


def test_what_the_script_says_of_the_placement_counts() -> None:
    chunked = Pipeline(2, 2, Schedule.GPIPE).orders()
    both = [step._replace(chunk=chunk) for chunk in (0, 1) for step in chunked[0][:2]]
    both += [step._replace(chunk=chunk) for chunk in (1, 0) for step in chunked[0][2:]]

    def told(placement: ChunkPlacement) -> PipelineOrders | Unrecorded:
        return orders_of([report(0, stage, ran(tuple(both), placement=placement)) for stage in (0, 1)], 2)

    for placement in (ChunkPlacement.LOOP, ChunkPlacement.V):
        found = told(placement)
        assert isinstance(found, PipelineOrders)
        assert found.v_shape == (placement is ChunkPlacement.V)
    reason, message = problem(told(ChunkPlacement.UNKNOWN))
    assert reason is Reason.ORDER_UNUSABLE
    assert "perseus_trainer.connect()" in message


def test_a_placement_in_which_nothing_can_run_is_refused() -> None:
    reason, message = problem(orders_of(reports(ZBV, placement=ChunkPlacement.LOOP), 2))
    assert reason is Reason.ORDER_UNUSABLE
    assert "cannot be planned: stage" in message
    assert "waits for what never comes" in message


def test_ranks_that_are_not_seen_or_not_settled_yet_are_waited_for() -> None:
    found = reports(GPIPE)
    assert problem(orders_of([], 2)) == (Reason.RECORDING, "no agent reports a rank of stage 0, 1 yet")
    gone = [each.model_copy(update={"connected": each.stage == 0}) for each in found]
    assert problem(orders_of(gone, 2)) == (Reason.RECORDING, "no agent reports a rank of stage 1 yet")
    for late in (None, ran(GPIPE.orders()[1], repeats=1)):
        unsettled = [*found[:3], report(1, 1, late)]
        reason, message = problem(orders_of(unsettled, 2))
        assert reason is Reason.RECORDING
        assert message.startswith("pipeline 1 stage 1 has not run the same order in two whole iterations")


def test_the_rank_that_differs_is_named_with_the_entry() -> None:
    stranger = ran(Pipeline(2, 4).orders()[0])
    found = [*reports(GPIPE, pipelines=1), report(1, 0, stranger), report(1, 1, ran(GPIPE.orders()[1]))]
    reason, message = problem(orders_of(found, 2))
    assert reason is Reason.ORDERS_DIFFER
    assert message == (
        "pipeline 1 stage 0 runs another order than pipeline 0 stage 0: entry 2 is backward of microbatch 0, not "
        "forward of microbatch 2"
    )
    fewer = ran(GPIPE.orders()[0][:-1])
    _, message = problem(orders_of([*reports(GPIPE, pipelines=1), report(1, 0, fewer)], 2))
    assert message.endswith("entry 7 is nothing, not backward of microbatch 3")


def test_ranks_that_place_their_chunks_otherwise_are_named() -> None:
    first, second = ZBV.orders()
    found = [
        report(0, 0, ran(first, placement=ChunkPlacement.V)), report(0, 1, ran(second, placement=ChunkPlacement.LOOP)),
    ]  # fmt: skip
    reason, message = problem(orders_of(found, 2))
    assert reason is Reason.ORDERS_DIFFER
    assert message == "pipeline 0 stage 1 says that its chunks lie in a loop, pipeline 0 stage 0 in V shape"
