"""The orders against those of torch.distributed.pipelining, made by torch's own schedule objects.

The objects are real ones: stages in a process group of torch's fake backend, which has ranks but sends nothing. Their
`pipeline_order` holds every rank's order. Two schedules need more:

- `Schedule1F1B` has a `pipeline_order`, but nothing in torch runs it, and in 2.15 it begins at microbatch 1 on the last
  rank. What the class really runs is recorded too, by a stage that notes what it is told to compute.
- the same is done for `ScheduleGPipe`, whose `pipeline_order` is right.

What torch refuses is left out: 1F1B (and GPipe, up to 2.9) with fewer microbatches than ranks, and rounds of different
lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule
from perseus_planner import Order, Pipeline, PipelineError, Step
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

LARGEST = 8
RANKS = range(1, LARGEST + 1)
MICROBATCHES = (*range(1, 18), 20, 24, 31, 32, 40)
INSTRUCTIONS = {
    "F": Instruction.FORWARD,
    "B": Instruction.BACKWARD,
    "I": Instruction.BACKWARD_INPUT,
    "W": Instruction.BACKWARD_WEIGHT,
}
COMPUTATION = re.compile(r"(?P<stage>\d+)(?P<kind>[FBIW])(?P<microbatch>\d+)")


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, Any]]:
    """A process group of each size, seen from rank 0."""
    dist.init_process_group("fake", rank=0, world_size=LARGEST, store=FakeStore())
    yield {ranks: dist.new_group(list(range(ranks))) for ranks in RANKS}
    dist.destroy_process_group()


def stages(pipeline: Pipeline, group: Any, rank: int = 0) -> list[PipelineStage]:
    return [
        PipelineStage(
            torch.nn.Identity(),
            pipeline.virtual_stage(rank, chunk),
            pipeline.virtual_stages,
            torch.device("cpu"),
            group=group,
        )
        for chunk in range(pipeline.chunks)
    ]


def orders_of(made: Any, pipeline: Pipeline) -> tuple[Order, ...]:
    """The orders of a schedule object, without its idle slots and its reduction of gradients."""
    chunk_of = {
        (rank, pipeline.virtual_stage(rank, chunk)): chunk
        for rank in range(pipeline.stages)
        for chunk in range(pipeline.chunks)
    }
    found = []
    for rank in range(pipeline.stages):
        # As torch writes actions into files: stage, letter, microbatch, such as 3F0.
        told = [COMPUTATION.fullmatch(str(action)) for action in made.pipeline_order[rank]]
        found.append(
            tuple(
                Step(INSTRUCTIONS[each["kind"]], int(each["microbatch"]), chunk_of[rank, int(each["stage"])])
                for each in told
                if each
            )
        )
    return tuple(found)


def loss(_output: object, _target: object) -> torch.Tensor:
    return torch.zeros(())


def refused_by_torch(error: ValueError) -> bool:
    """Whether an error is one of the limits that torch sets; anything else is a mistake of the test."""
    limits = ("multiple of the number of rounds", "greater than or equal to the number of stages")
    return any(limit in " ".join(str(error).split()) for limit in limits)


def compared(schedule: Schedule, ranks: int, chunks: int, make: Callable[[Pipeline], Any], least: int = 1) -> list[int]:
    """Compare for all microbatches; return the numbers of them that both sides have an order for."""
    same = []
    for microbatches in MICROBATCHES:
        pipeline = Pipeline(ranks, microbatches, schedule, chunks=chunks)
        try:
            made = make(pipeline)
        except ValueError as error:
            if not refused_by_torch(error):
                raise
            if chunks > 1:
                with pytest.raises(PipelineError, match="equal rounds"):
                    pipeline.orders()
            continue
        assert pipeline.orders() == orders_of(made, pipeline), f"{microbatches} microbatches"
        same.append(microbatches)
    return same


@pytest.mark.parametrize("ranks", RANKS)
def test_gpipe(ranks: int, groups: dict[int, Any]) -> None:
    def make(pipeline: Pipeline) -> ScheduleGPipe:
        return ScheduleGPipe(stages(pipeline, groups[ranks])[0], pipeline.microbatches)

    same = compared(Schedule.GPIPE, ranks, 1, make)
    assert {each for each in MICROBATCHES if each >= ranks} <= set(same)


@pytest.mark.parametrize("ranks", RANKS)
def test_1f1b_where_torchs_list_is_right(ranks: int, groups: dict[int, Any]) -> None:
    """On all ranks but the last, whose list begins at a wrong microbatch."""
    for microbatches in MICROBATCHES:
        if microbatches >= ranks:
            pipeline = Pipeline(ranks, microbatches)
            made = orders_of(Schedule1F1B(stages(pipeline, groups[ranks])[0], microbatches), pipeline)
            assert pipeline.orders()[:-1] == made[:-1]
            assert [step.instruction for step in pipeline.orders()[-1]] == [step.instruction for step in made[-1]]


class RecordingStage(PipelineStage):
    """A stage that computes and sends nothing, and notes what it is told to compute."""

    def __init__(self, index: int, count: int, group: Any) -> None:
        super().__init__(torch.nn.Identity(), index, count, torch.device("cpu"), group=group)
        self.told: list[Step] = []

    def forward_one_chunk(self, fwd_chunk_id: int, *_: Any, **__: Any) -> torch.Tensor:
        self.told.append(Step(Instruction.FORWARD, fwd_chunk_id))
        return torch.zeros(1)

    def backward_one_chunk(self, bwd_chunk_id: int, *_: Any, **__: Any) -> None:
        self.told.append(Step(Instruction.BACKWARD, bwd_chunk_id))

    def _nothing(self, *_: Any, **__: Any) -> list[Any]:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = _nothing
    perform_reduce_grad = _nothing


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    ("schedule", "made"), [(Schedule.ONE_FORWARD_ONE_BACKWARD, Schedule1F1B), (Schedule.GPIPE, ScheduleGPipe)]
)
def test_what_single_stage_schedules_really_run(
    ranks: int, schedule: Schedule, made: Any, groups: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_initialize_stage", lambda *_: None)
    for microbatches in MICROBATCHES:
        for rank, order in enumerate(Pipeline(ranks, microbatches, schedule).orders()):
            stage = RecordingStage(rank, ranks, groups[ranks])
            try:
                runner = made(stage, microbatches)
            except ValueError as error:
                assert refused_by_torch(error)  # noqa: PT017 - its message is cut over lines
                assert microbatches < ranks
                continue
            monkeypatch.setattr(runner, "_maybe_compute_loss", lambda *_: None)
            monkeypatch.setattr(runner, "_maybe_get_loss", lambda *_: None)
            runner._step_microbatches([()] * microbatches, [{}] * microbatches)
            assert tuple(stage.told) == order


@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize("ranks", RANKS)
def test_interleaved_1f1b(ranks: int, chunks: int, groups: dict[int, Any]) -> None:
    def make(pipeline: Pipeline) -> ScheduleInterleaved1F1B:
        return ScheduleInterleaved1F1B(stages(pipeline, groups[ranks]), pipeline.microbatches, loss_fn=loss)

    same = compared(Schedule.INTERLEAVED_1F1B, ranks, chunks, make)
    assert {each for each in MICROBATCHES if each % ranks == 0 or each < ranks} <= set(same)


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("ranks", RANKS)
def test_zb_h1(ranks: int, chunks: int, groups: dict[int, Any]) -> None:
    """torch calls it ScheduleInterleavedZeroBubble; with one chunk on each rank it is the paper's ZB-H1."""

    def make(pipeline: Pipeline) -> ScheduleInterleavedZeroBubble:
        return ScheduleInterleavedZeroBubble(stages(pipeline, groups[ranks]), pipeline.microbatches, loss_fn=loss)

    same = compared(Schedule.ZB_H1, ranks, chunks, make)
    assert {each for each in MICROBATCHES if each % ranks == 0 or each < ranks} <= set(same)


@pytest.mark.parametrize("ranks", RANKS)
def test_zbv(ranks: int, groups: dict[int, Any]) -> None:
    def make(pipeline: Pipeline) -> ScheduleZBVZeroBubble:
        return ScheduleZBVZeroBubble(stages(pipeline, groups[ranks]), pipeline.microbatches, loss_fn=loss)

    assert compared(Schedule.ZBV, ranks, 2, make) == list(MICROBATCHES)
