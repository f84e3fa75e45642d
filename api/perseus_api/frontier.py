"""The frontier document: what the optimisation pod makes and the operator looks plans up in.

It holds the exact relaxation's breakpoints (iteration time, energy) and realisable plans sampled on it from the fastest
to T*, the time of minimum energy. All energies are of one GPU of each stage (tensor-parallel ranks scale them), for one
pipeline and one iteration.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from perseus_api.durations import StageSeconds
from perseus_api.encoding import decode, encode, validated
from perseus_api.instructions import LONGEST_ORDER, TUNABLE_INSTRUCTIONS
from perseus_api.schedules import Schedule

SCHEMA_VERSION = 1
_TUNABLE_CODES = frozenset(instruction.code for instruction in TUNABLE_INSTRUCTIONS)

Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Joules = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Watts = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]
Megahertz = Annotated[int, Field(ge=0, le=100_000)]
Chunk = Annotated[int, Field(ge=0, le=255)]  # model chunk of a rank
Order = Annotated[str, Field(min_length=1, max_length=LONGEST_ORDER, pattern=r"^[A-Z]+$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class RealisedPlan(_Document):
    """A plan that really exists: one measured clock for each instruction.

    Attributes:
        iteration_seconds: longest path through the pipeline's DAG at the plan's real times.
        iteration_joules: energy of the pipeline's GPUs (one of each stage) in one iteration, blocking included.
        bound_joules: energy of the exact relaxation at the same time: no plan can be below.
        clocks: by stage, one clock in MHz for each instruction of the stage's order; 0 where it has no clock.
    """

    iteration_seconds: Seconds
    iteration_joules: Joules
    bound_joules: Joules
    clocks: tuple[tuple[Megahertz, ...], ...]


class PipelineShape(_Document):
    """The pipeline that a frontier holds for.

    Attributes:
        stages: pipeline ranks.
        microbatches: of one iteration.
        tensor_parallel: GPUs of a rank.
        schedule: that its orders are of.
        chunks: model chunks of each rank.
        v_shape: of orders that were given: odd chunks run through the ranks backwards.
    """

    stages: Annotated[int, Field(ge=1, le=256)]
    microbatches: Annotated[int, Field(ge=1, le=4096)]
    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    schedule: Schedule
    chunks: Annotated[int, Field(ge=1, le=256)] = 1
    v_shape: bool = False


class Frontier(_Document):
    """The frontier of one pipeline and its realisable plans.

    Attributes:
        profile_checksum: of the profile it was computed from, so that a stale frontier is recognised.
        blocking_power_watts: of one GPU, as used; the average over the stages where their GPUs differ, so that it is
            right for all of them together.
        stage_blocking_power_watts: by stage, where they differ; empty where all are `blocking_power_watts`.
        order: by stage, the letters of its instructions in order of execution.
        microbatches: by stage, the microbatch of each instruction.
        chunks: by stage, the model chunk of each instruction; empty where all are 0.
        fastest: every instruction at its highest clock (what an unlocked GPU would do): the reference of savings.
        fastest_stage_joules: energy by stage of `fastest`, blocking included.
        plans: in order of growing time; the first is the plan without slowdown, the last is T*.
        stage_seconds: by stage, the profile's times at the clocks that plans use (`perseus_api.durations`); empty
            where it is not known.
        breakpoint_seconds: times of the relaxation's breakpoints, growing.
        breakpoint_joules: energies at those times, falling.
        tool_version: version of the planner.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    shape: PipelineShape
    profile_checksum: Annotated[str, Field(max_length=128)]
    blocking_power_watts: Watts
    stage_blocking_power_watts: Annotated[tuple[Watts, ...], Field(max_length=256)] = ()
    order: Annotated[tuple[Order, ...], Field(max_length=256)]
    microbatches: tuple[tuple[int, ...], ...]
    chunks: tuple[tuple[Chunk, ...], ...] = ()
    fastest: RealisedPlan
    fastest_stage_joules: tuple[Joules, ...]
    plans: Annotated[tuple[RealisedPlan, ...], Field(min_length=1, max_length=4096)]
    stage_seconds: Annotated[tuple[StageSeconds, ...], Field(max_length=256)] = ()
    breakpoint_seconds: tuple[Seconds, ...]
    breakpoint_joules: tuple[Joules, ...]
    tool_version: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Frontier:
        if len(self.order) != self.shape.stages or len(self.fastest_stage_joules) != self.shape.stages:
            raise ValueError(f"order and fastestStageJoules must have one entry for each of {self.shape.stages} stages")
        if [len(order) for order in self.order] != [len(each) for each in self.microbatches]:
            raise ValueError("microbatches must have one entry for each instruction of order")
        if self.chunks and [len(order) for order in self.order] != [len(each) for each in self.chunks]:
            raise ValueError("chunks must be empty or have one entry for each instruction of order")
        if len(self.stage_blocking_power_watts) not in (0, self.shape.stages):
            raise ValueError(
                f"stageBlockingPowerWatts must be empty or have one entry for each of {self.shape.stages} stages"
            )
        if len(self.stage_seconds) not in (0, self.shape.stages):
            raise ValueError(f"stageSeconds must be empty or have one entry for each of {self.shape.stages} stages")
        for plan in (self.fastest, *self.plans):
            check_clocks(self.order, plan.clocks)
        times = [plan.iteration_seconds for plan in self.plans]
        if times != sorted(times):
            raise ValueError("plans must be in order of growing iterationSeconds")
        if len(self.breakpoint_seconds) != len(self.breakpoint_joules):
            raise ValueError("breakpointSeconds and breakpointJoules must have the same length")
        return self

    def encode(self) -> bytes:
        """Return the bytes for the frontier ConfigMap's binaryData."""
        return encode(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def decode(cls, data: bytes) -> Frontier:
        """Load and check a frontier.

        Raises:
            DocumentError: damaged, too large or not valid.
        """
        return validated(cls, decode(data, "frontier"), "frontier")


def check_clocks(order: tuple[str, ...], clocks: tuple[tuple[int, ...], ...]) -> None:
    """Check that clocks stand exactly where an order has instructions with a clock.

    Raises:
        ValueError: which stage does not fit.
    """
    if len(order) != len(clocks):
        raise ValueError(f"clocks must have one list for each of {len(order)} stages, not {len(clocks)}")
    for stage, (letters, stage_clocks) in enumerate(zip(order, clocks, strict=True)):
        if len(letters) != len(stage_clocks):
            raise ValueError(f"stage {stage} has {len(letters)} instructions but {len(stage_clocks)} clocks")
        for letter, clock in zip(letters, stage_clocks, strict=True):
            if (clock > 0) != (letter in _TUNABLE_CODES):
                raise ValueError(f"stage {stage}: instruction {letter} with clock {clock} MHz")
