"""How a global rank and its place (pipeline, stage, tensor rank) belong together. Standard library only.

Frameworks number their ranks differently; whoever names a rank (trainer, agent, operator) asks here, so that all mean
the same process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MANY_PIPELINES = 65_536  # as many as a job may have: for who is not told how many there are


class RankOrder(StrEnum):
    """Which coordinate varies slowest, to fastest."""

    PIPELINE_STAGE_TENSOR = "PipelineStageTensor"  # a pipeline's ranks stand together
    STAGE_PIPELINE_TENSOR = "StagePipelineTensor"  # a stage's ranks stand together, as in Megatron-LM and DeviceMesh


@dataclass(frozen=True, slots=True)
class RankShape:
    """The numbers of pipelines, stages and tensor-parallel ranks, and their order.

    Raises:
        ValueError: a number is below 1.
    """

    stages: int
    pipelines: int
    tensor_parallel: int = 1
    order: RankOrder = RankOrder.PIPELINE_STAGE_TENSOR

    def __post_init__(self) -> None:
        if min(self.stages, self.pipelines, self.tensor_parallel) < 1:
            raise ValueError("stages, pipelines and tensor parallel degree must be at least 1")

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.stages * self.pipelines * self.tensor_parallel

    def place(self, rank: int) -> tuple[int, int, int]:
        """Return pipeline, stage and tensor rank of a global rank.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= rank < self.ranks:
            raise ValueError(f"rank {rank} is not one of the {self.ranks} ranks (stages x pipelines x tensor parallel)")
        outer, tensor_rank = divmod(rank, self.tensor_parallel)
        if self.order is RankOrder.PIPELINE_STAGE_TENSOR:
            pipeline, stage = divmod(outer, self.stages)
        else:
            stage, pipeline = divmod(outer, self.pipelines)
        return pipeline, stage, tensor_rank

    def rank(self, pipeline: int, stage: int, tensor_rank: int = 0) -> int:
        """Return the global rank of a place.

        Raises:
            ValueError: there is no such place.
        """
        inside = 0 <= pipeline < self.pipelines and 0 <= stage < self.stages and 0 <= tensor_rank < self.tensor_parallel
        if not inside:
            raise ValueError(f"pipeline {pipeline}, stage {stage}, tensor rank {tensor_rank} is no place of this job")
        if self.order is RankOrder.PIPELINE_STAGE_TENSOR:
            outer = pipeline * self.stages + stage
        else:
            outer = stage * self.pipelines + pipeline
        return outer * self.tensor_parallel + tensor_rank
