"""The pipeline: which stage runs which instruction when, and what waits for what. No times, no energies."""

from __future__ import annotations

from dataclasses import dataclass

from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule

Order = tuple[tuple[Instruction, int], ...]  # of one stage: instruction and microbatch
_FORWARD, _BACKWARD = Instruction.FORWARD, Instruction.BACKWARD


@dataclass(frozen=True)
class Pipeline:
    """The shape of one data-parallel pipeline.

    Attributes:
        stages: pipeline stages.
        microbatches: microbatches of one iteration.
        schedule: order of the instructions of each stage.
        tensor_parallel: GPUs of a stage; energies stay those of one of them.
    """

    stages: int
    microbatches: int
    schedule: Schedule = Schedule.ONE_FORWARD_ONE_BACKWARD
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if min(self.stages, self.microbatches, self.tensor_parallel) < 1:
            raise ValueError("stages, microbatches and tensor_parallel must be at least 1")

    def orders(self) -> tuple[Order, ...]:
        """Return the order of each stage.

        1F1B is PipeDream-Flush (Narayanan et al., Memory-Efficient Pipeline-Parallel DNN Training, 2021): stage s
        warms up with stages - s - 1 forwards. GPipe (Huang et al., 2019) runs all forwards first.
        """
        return tuple(self._order(stage) for stage in range(self.stages))

    def _order(self, stage: int) -> Order:
        count = self.microbatches
        ahead = count if self.schedule is Schedule.GPIPE else min(count, self.stages - stage - 1)
        order = [(_FORWARD, index) for index in range(ahead)]
        for index in range(count - ahead):
            order += [(_FORWARD, ahead + index), (_BACKWARD, index)]
        order += [(_BACKWARD, index) for index in range(count - ahead, count)]
        return tuple(order)
