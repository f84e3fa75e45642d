"""What order a job's ranks run, from their agents' reports: spec.schedule Recorded. Pure.

Orders count when each rank has run its own twice in a row, and when all pipelines run the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from perseus_api.conditions import Reason
from perseus_api.instructions import Instruction
from perseus_api.measurements import RankOrder, RankReport
from perseus_api.messages import ChunkPlacement
from perseus_api.orders import MAXIMUM_BYTES, PipelineOrders
from perseus_api.profile import MAXIMUM_STAGES
from perseus_planner import Pipeline
from perseus_planner.recorded import possible_placements, problem_of, recorded_pipeline

from perseus_operator.profiling.merging import unreported

AGREEING_ITERATIONS = 2


@dataclass(frozen=True)
class Unrecorded:
    """No orders yet, or none that can be planned: the reason, and a sentence that says why."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Recorded:
    """Orders that the ranks were seen to run, with what is made of them once.

    Attributes:
        orders: as a document.
        pipeline: the same for the planner.
        digest: what identifies them.
    """

    orders: PipelineOrders
    pipeline: Pipeline
    digest: str

    @classmethod
    def of(cls, orders: PipelineOrders, tensor_parallel: int) -> Recorded:
        """Make it; long orders take a while."""
        return cls(orders, recorded_pipeline(orders, tensor_parallel), orders.digest)


def orders_of(reports: Sequence[RankReport], stages: int) -> PipelineOrders | Unrecorded:
    """Return the orders that the ranks of a job run.

    Args:
        reports: of the ranks that were asked.
        stages: of the job's pipelines.
    """
    connected = sorted(
        (report for report in reports if report.connected),
        key=lambda report: (report.pipeline, report.stage, report.tensor_rank),
    )
    missing = unreported(connected, stages)
    if missing:
        return Unrecorded(Reason.RECORDING, missing)
    first: dict[int, tuple[RankReport, RankOrder]] = {}
    for report in connected:
        order = report.order
        if order is None or order.repeats < AGREEING_ITERATIONS:
            words = f"{_name(report)} has not run the same order in two whole iterations in a row yet"
            return Unrecorded(Reason.RECORDING, words)
        other, known = first.setdefault(report.stage, (report, order))
        if not _same(order, known):
            words = f"{_name(report)} runs another order than {_name(other)}: {_difference(order, known)}"
            return Unrecorded(Reason.ORDERS_DIFFER, words)
    by_stage = [first[stage] for stage in range(stages)]
    placements = {order.placement: report for report, order in by_stage if order.placement}
    if len(placements) > 1:
        one, other = placements[ChunkPlacement.LOOP], placements[ChunkPlacement.V]
        words = f"{_name(one)} says that its chunks lie in a loop, {_name(other)} in V shape"
        return Unrecorded(Reason.ORDERS_DIFFER, words)
    chunked = any(order.chunks for _, order in by_stage)
    orders = PipelineOrders(
        order=tuple(order.letters for _, order in by_stage),
        microbatches=tuple(order.microbatches for _, order in by_stage),
        chunks=tuple(order.chunks or (0,) * len(order.letters) for _, order in by_stage) if chunked else (),
        v_shape=ChunkPlacement.V in placements and chunked,
    )
    return _checked(orders, bool(placements))


def _checked(orders: PipelineOrders, is_placed: bool) -> PipelineOrders | Unrecorded:
    pipeline = recorded_pipeline(orders)
    if pipeline.virtual_stages > MAXIMUM_STAGES:
        words = f"the ranks hold {pipeline.virtual_stages} parts of the model; no profile holds over {MAXIMUM_STAGES}"
        return Unrecorded(Reason.ORDER_UNUSABLE, words)
    if is_placed:
        problem = problem_of(pipeline)
        if problem:
            return Unrecorded(Reason.ORDER_UNUSABLE, f"what the ranks run cannot be planned: {problem}")
    else:
        possible = possible_placements(pipeline)
        if not possible:
            return Unrecorded(Reason.ORDER_UNUSABLE, f"what the ranks run cannot be planned: {problem_of(pipeline)}")
        if len(possible) > 1:
            words = (
                "what the ranks run fits chunks that lie in a loop and chunks in V shape: say which, by v_shape=True "
                "or False of perseus_trainer.connect() in the training script"
            )
            return Unrecorded(Reason.ORDER_UNUSABLE, words)
        orders = orders.model_copy(update={"v_shape": possible[0]})
    size = len(orders.encode())
    if size > MAXIMUM_BYTES:
        words = f"the orders have {size} bytes; at most {MAXIMUM_BYTES} are kept: name the schedule in spec.schedule"
        return Unrecorded(Reason.ORDER_UNUSABLE, words)
    return orders


def _same(one: RankOrder, other: RankOrder) -> bool:
    return one == other.model_copy(update={"repeats": one.repeats})


def _difference(one: RankOrder, other: RankOrder) -> str:
    for entry, (mine, theirs) in enumerate(zip_longest(_steps(one), _steps(other))):
        if mine != theirs:
            return f"entry {entry} is {mine or 'nothing'}, not {theirs or 'nothing'}"
    return "their chunks lie otherwise in the model"


def _steps(order: RankOrder) -> list[str]:
    chunks = order.chunks or (0,) * len(order.letters)
    return [
        f"{Instruction.from_code(letter).value} of microbatch {microbatch}" + (f", chunk {chunk}" if chunk else "")
        for letter, microbatch, chunk in zip(order.letters, order.microbatches, chunks, strict=True)
    ]


def _name(report: RankReport) -> str:
    return f"pipeline {report.pipeline} stage {report.stage}"
