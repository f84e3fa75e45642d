"""The pipeline: which rank runs which instruction when, and which part of the model it holds. No times, no energies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule

from perseus_planner import orders as generators
from perseus_planner.steps import Order, Step

__all__ = ["Order", "Pipeline", "PipelineError", "Step"]

_CHUNKED = (Schedule.INTERLEAVED_1F1B, Schedule.ZB_H1, Schedule.ZBV, Schedule.CUSTOM)


class PipelineError(ValueError):
    """A shape that no pipeline has; the text says what to change."""


@dataclass(frozen=True)
class Pipeline:
    """The shape of one data-parallel pipeline.

    The model is cut into stages x chunks virtual stages, numbered as a microbatch passes through them; a profile
    measures virtual stages. With one chunk they are the stages.

    Attributes:
        stages: pipeline ranks: GPUs of one pipeline (times `tensor_parallel`).
        microbatches: microbatches of one iteration.
        schedule: order of the instructions of each rank.
        tensor_parallel: GPUs of a rank; energies stay those of one of them.
        chunks: model chunks on each rank: 2 or more for Interleaved1F1B, 2 for ZBV, 1 or more for ZBH1 and Custom.
        orders_given: orders by rank, for the schedule Custom and only for it.
        v_shape: with Custom, odd chunks run through the ranks backwards, as ZBV's do.
    """

    stages: int
    microbatches: int
    schedule: Schedule = Schedule.ONE_FORWARD_ONE_BACKWARD
    tensor_parallel: int = 1
    chunks: int = 1
    orders_given: tuple[Order, ...] | None = None
    v_shape: bool = False

    def __post_init__(self) -> None:
        if min(self.stages, self.microbatches, self.tensor_parallel, self.chunks) < 1:
            raise PipelineError("stages, microbatches, tensor_parallel and chunks must be at least 1")
        name = self.schedule.value
        if self.schedule is Schedule.ZBV and self.chunks != 2:
            raise PipelineError(f"the schedule {name} has 2 chunks on each rank, not {self.chunks}: set chunks to 2")
        if self.schedule is Schedule.INTERLEAVED_1F1B and self.chunks == 1:
            raise PipelineError(f"the schedule {name} has several chunks on each rank: set chunks to 2 or more")
        if self.schedule not in _CHUNKED and self.chunks != 1:
            raise PipelineError(f"the schedule {name} has 1 chunk on each rank, not {self.chunks}: set chunks to 1")
        if (self.schedule is Schedule.CUSTOM) != (self.orders_given is not None):
            raise PipelineError("orders must be given for the schedule Custom, and only for it")
        if self.v_shape and self.schedule is not Schedule.CUSTOM:
            raise PipelineError(f"v_shape is for the schedule Custom; where chunks of {name} are is known")
        if self.orders_given is not None:
            self._check_given(self.orders_given)

    @classmethod
    def of_orders(cls, orders: tuple[Order, ...], tensor_parallel: int = 1, v_shape: bool = False) -> Pipeline:
        """Return the pipeline that given orders are of: as many microbatches and chunks as they name."""
        steps = [step for order in orders for step in order]
        return cls(
            stages=len(orders),
            microbatches=1 + max(step.microbatch for step in steps),
            schedule=Schedule.CUSTOM,
            tensor_parallel=tensor_parallel,
            chunks=1 + max(step.chunk for step in steps),
            orders_given=orders,
            v_shape=v_shape,
        )

    def lacking_chunk(self) -> str:
        """Return which stage leaves a chunk out, as a sentence; empty if each runs all of them."""
        for stage, order in enumerate(self.orders()):
            held = {step.chunk for step in order if step.instruction is Instruction.FORWARD}
            lacking = sorted(set(range(self.chunks)) - held)
            if lacking:
                return f"stage {stage} runs no forward of chunk {lacking[0]}: each stage must run all of {self.chunks}"
        return ""

    @property
    def virtual_stages(self) -> int:
        """Parts that the model is cut into."""
        return self.stages * self.chunks

    def virtual_stage(self, rank: int, chunk: int) -> int:
        """Return which part of the model a rank holds in a chunk.

        Chunks are dealt out in turn, chunk x stages + rank; in V shape every other one backwards: chunk 1 of rank r is
        2 x stages - 1 - r.
        """
        if (self.schedule is Schedule.ZBV or self.v_shape) and chunk % 2:
            return (chunk + 1) * self.stages - 1 - rank
        return chunk * self.stages + rank

    def orders(self) -> tuple[Order, ...]:
        """Return the order of each rank.

        Raises:
            PipelineError: the schedule has no order for these microbatches.
        """
        if self.orders_given is not None:
            return self.orders_given
        try:
            return _orders(self.schedule, self.stages, self.microbatches, self.chunks)
        except ValueError as error:
            raise PipelineError(str(error)) from None

    def _check_given(self, given: tuple[Order, ...]) -> None:
        if len(given) != self.stages:
            raise PipelineError(f"orders are given for {len(given)} stages, the pipeline has {self.stages}")
        for rank, order in enumerate(given):
            if not order:
                raise PipelineError(f"the order given for stage {rank} is empty")
            for entry, step in enumerate(order):
                if not (0 <= step.microbatch < self.microbatches and 0 <= step.chunk < self.chunks):
                    raise PipelineError(
                        f"stage {rank} entry {entry} is {step.instruction.value} of microbatch {step.microbatch}, "
                        f"chunk {step.chunk}: the pipeline has {self.microbatches} microbatches and {self.chunks} "
                        f"chunks"
                    )


@lru_cache(maxsize=4)
def _orders(schedule: Schedule, stages: int, microbatches: int, chunks: int) -> tuple[Order, ...]:
    """The orders of a schedule that has a name. While a job is measured they are asked for again and again."""
    return tuple(_order(schedule, (rank, stages, microbatches), chunks) for rank in range(stages))


def _order(schedule: Schedule, place: tuple[int, int, int], chunks: int) -> Order:
    match schedule:
        case Schedule.GPIPE:
            return generators.gpipe(*place)
        case Schedule.INTERLEAVED_1F1B:
            return generators.interleaved(*place, chunks)
        case Schedule.EARLY_RECOMPUTE_1F1B:
            return generators.early_recompute(*place)
        case Schedule.ZB_H1:
            return generators.zb_h1(*place, chunks)
        case Schedule.ZBV:
            return generators.zbv(*place)
        case _:
            return generators.one_forward_one_backward(*place)
