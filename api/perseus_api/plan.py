"""The plan document: what the operator pushes and the agents obey.

JSON, versioned, checksummed, bounded, no code. One plan ConfigMap belongs to one PerseusJob and lives in the operator's
namespace. Generations only grow; a generation names the first training iteration that it holds for, so that all stages
of a pipeline change together wherever they run.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from perseus_api.durations import StageSeconds
from perseus_api.encoding import decode, encode, validated
from perseus_api.frontier import Chunk, Joules, Megahertz, Order, Seconds, Watts, check_clocks

SCHEMA_VERSION = 1


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class JobReference(_Document):
    """The PerseusJob that a plan belongs to."""

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    name: Annotated[str, Field(min_length=1, max_length=63)]
    uid: Annotated[str, Field(min_length=1, max_length=64)]


class Variant(_Document):
    """One assignment of clocks to a pipeline; each pipeline of the job runs one of the plan's variants.

    Attributes:
        name: ``fastest`` (no slowdown), ``objective`` or ``stretched`` (to a straggler's time).
        iteration_seconds: predicted pipeline time at the profile's real times.
        iteration_joules: predicted energy of the pipeline's GPUs (one of each stage) in one iteration.
        clocks: by stage, MHz for each instruction of the stage's order; 0 where it has no clock.
    """

    name: Annotated[str, Field(min_length=1, max_length=32)]
    iteration_seconds: Seconds
    iteration_joules: Joules
    clocks: tuple[tuple[Megahertz, ...], ...]


class Baseline(_Document):
    """What savings are counted against when no unlocked iteration was measured: then it is a prediction.

    Attributes:
        iteration_seconds: predicted unlocked pipeline time.
        stage_joules: predicted energy by stage of one GPU in one unlocked iteration.
        blocking_power_watts: of one GPU waiting in communication; the average over the stages where they differ.
        stage_blocking_power_watts: by stage, where they differ; empty where all are `blocking_power_watts`.
    """

    iteration_seconds: Seconds
    stage_joules: tuple[Joules, ...]
    blocking_power_watts: Watts
    stage_blocking_power_watts: Annotated[tuple[Watts, ...], Field(max_length=256)] = ()

    def blocking_power_of(self, stage: int) -> float:
        """Return the blocking power in watts of a stage's GPU."""
        return self.stage_blocking_power_watts[stage] if self.stage_blocking_power_watts else self.blocking_power_watts


class Window(_Document):
    """A stretch of iterations of a sweep.

    Attributes:
        first_iteration: training iteration with which it begins.
        iterations: how many it lasts.
        variant: what all pipelines run in it, as an index.
    """

    first_iteration: Annotated[int, Field(ge=0, le=2**53)]
    iterations: Annotated[int, Field(ge=1, le=10_000)]
    variant: Annotated[int, Field(ge=0)]

    @property
    def end(self) -> int:
        """The first iteration after it."""
        return self.first_iteration + self.iterations


class Sweep(_Document):
    """What makes a plan a sweep: clocks by iteration, so that agents measure them while the job trains.

    Attributes:
        measurement: names the measurement; rows of another one are forgotten.
        windows: in order, without overlap; outside of them the GPUs are unlocked.
    """

    measurement: Annotated[str, Field(min_length=1, max_length=64)]
    windows: Annotated[tuple[Window, ...], Field(min_length=1, max_length=1024)]

    @property
    def end(self) -> int:
        """The first iteration after the last window."""
        return self.windows[-1].end

    @model_validator(mode="after")
    def _in_order(self) -> Sweep:
        for earlier, later in pairwise(self.windows):
            if later.first_iteration < earlier.end:
                raise ValueError(
                    f"a window begins at iteration {later.first_iteration}, before the one before has ended"
                )
        return self


class Plan(_Document):
    """A job's plan.

    Attributes:
        job: the job it belongs to; an agent serves it to no other.
        generation: grows with every change.
        first_iteration: training iteration from which it holds.
        order: by stage, the letters of its instructions in order of execution.
        chunks: by stage, the model chunk of each instruction, so that an agent sees when training runs another one;
            empty where ranks have one chunk. Microbatches are not told: no clock depends on them.
        variants: the assignments of clocks in use.
        pipelines: for each data-parallel pipeline, the index of its variant.
        tensor_parallel: GPUs of a stage; all of them run the same clocks.
        baseline: reference of savings.
        sweep: clocks by iteration to be measured, in place of `pipelines`; None in every other plan.
        stage_seconds: by stage, what instructions take by the profile, at the plan's clocks and at the highest one
            (`perseus_api.durations`); empty where it is not known.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    job: JobReference
    generation: Annotated[int, Field(ge=1, le=2**53)]
    first_iteration: Annotated[int, Field(ge=0, le=2**53)]
    order: Annotated[tuple[Order, ...], Field(min_length=1, max_length=256)]
    chunks: Annotated[tuple[tuple[Chunk, ...], ...], Field(max_length=256)] = ()
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=64)]
    pipelines: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=65_536)]
    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    baseline: Baseline
    sweep: Sweep | None = None
    stage_seconds: Annotated[tuple[StageSeconds, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        for variant in self.variants:
            check_clocks(self.order, variant.clocks)
        if self.chunks and [len(each) for each in self.chunks] != [len(order) for order in self.order]:
            raise ValueError("chunks must be empty or have one entry for each instruction of order")
        if max(self.pipelines) >= len(self.variants):
            raise ValueError(f"pipelines names variant {max(self.pipelines)}; there are {len(self.variants)}")
        if self.sweep is not None:
            highest = max(window.variant for window in self.sweep.windows)
            if highest >= len(self.variants):
                raise ValueError(f"sweep names variant {highest}; there are {len(self.variants)}")
        if len(self.baseline.stage_joules) != len(self.order):
            raise ValueError(f"baseline.stageJoules must have one entry for each of {len(self.order)} stages")
        if len(self.baseline.stage_blocking_power_watts) not in (0, len(self.order)):
            raise ValueError(
                f"baseline.stageBlockingPowerWatts must be empty or have one entry for each of {len(self.order)} stages"
            )
        if len(self.stage_seconds) not in (0, len(self.order)):
            raise ValueError(f"stageSeconds must be empty or have one entry for each of {len(self.order)} stages")
        return self

    def clocks_of(self, pipeline: int, stage: int) -> tuple[int, ...]:
        """Return the clocks in MHz of one stage of one pipeline, one for each instruction of `order`.

        Raises:
            IndexError: the plan has no such pipeline or stage.
        """
        return self.variants[self.pipelines[pipeline]].clocks[stage]

    def seconds_of(self, stage: int) -> dict[str, dict[int, float]]:
        """Return what a stage's instructions take, by work and clock in MHz; empty where it is not known."""
        return self.stage_seconds[stage] if self.stage_seconds else {}

    def encode(self) -> bytes:
        """Return the bytes for the plan ConfigMap's binaryData."""
        document = self.model_dump(mode="json", by_alias=True)
        # An agent of an older version knows neither, and reads every other plan.
        if self.sweep is None:
            del document["sweep"]
        if not self.chunks:
            del document["chunks"]
        return encode(document)

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """Load and check a plan.

        Raises:
            DocumentError: damaged, too large or not valid.
        """
        return validated(cls, decode(data, "plan"), "plan")
