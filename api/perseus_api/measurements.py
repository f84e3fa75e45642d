"""What an agent has measured of the ranks on its node: the JSON page that the operator reads while a sweep runs.

Rows carry their sample counts and standard errors, so that whoever merges them can weigh them. Everything is bounded:
the operator reads what a network answers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from perseus_api.encoding import first_problem
from perseus_api.errors import DocumentError
from perseus_api.frontier import Chunk, Joules, Order, Seconds, Watts
from perseus_api.instructions import LONGEST_ORDER, Instruction
from perseus_api.orders import Microbatch

MAXIMUM_REPORT_BYTES = 16 * 1024 * 1024
MAXIMUM_ORDER_ENTRIES = 1_000_000  # of all ranks on a page: the orders of more are left out
_LETTERS = frozenset(each.code for each in Instruction)
MAXIMUM_NAME = 256
Name = Annotated[str, Field(max_length=MAXIMUM_NAME)]
Index = Annotated[int, Field(ge=0, le=2**53)]
Clock = Annotated[int, Field(ge=1, le=100_000)]
Deviation = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class InstructionRow(_Document):
    """One instruction of one model chunk at one clock.

    Attributes:
        chunk: model chunk of the rank.
        samples: instructions whose time counts.
        time_seconds: mean time.
        time_stderr: its standard error.
        energy_joules: mean energy of the GPU; None while the counter has not refreshed often enough to tell.
        energy_stderr: its standard error.
    """

    instruction: Instruction
    chunk: Chunk = 0
    frequency_megahertz: Clock
    samples: Index
    time_seconds: Seconds
    time_stderr: Deviation
    energy_joules: Joules | None = None
    energy_stderr: Deviation | None = None


class BlockingRow(_Document):
    """Power of a GPU that waits in communication at one clock.

    Attributes:
        seconds: how long it was seen to wait.
        watts: its power meanwhile.
        watts_stderr: the standard error.
    """

    frequency_megahertz: Clock
    seconds: Deviation
    watts: Watts
    watts_stderr: Deviation


class RankOrder(_Document):
    """The order that a rank ran in its last whole iteration.

    Attributes:
        letters: of its instructions.
        microbatches: of each.
        chunks: model chunk of each; empty where all are 0.
        placement: how chunks lie, as the training script told it (`ChunkPlacement`); 0 if it did not.
        repeats: whole iterations in a row that ran this order.
    """

    letters: Order
    microbatches: Annotated[tuple[Microbatch, ...], Field(max_length=LONGEST_ORDER)]
    chunks: Annotated[tuple[Chunk, ...], Field(max_length=LONGEST_ORDER)] = ()
    placement: Annotated[int, Field(ge=0, le=2)] = 0
    repeats: Index = 1

    @model_validator(mode="after")
    def _consistent(self) -> RankOrder:
        count = len(self.letters)
        if len(self.microbatches) != count or len(self.chunks) not in (0, count):
            raise ValueError("microbatches and chunks must have one entry for each letter")
        if not set(self.letters) <= _LETTERS:
            raise ValueError("letters must be those of instructions")
        return self


class RankReport(_Document):
    """One rank.

    Attributes:
        job_uid: of the PerseusJob that its pod belongs to.
        gpu_model: as NVML names it.
        driver: version of the driver.
        supported_clocks: the device's own list in MHz, falling.
        iteration: that runs now; -1 before the first.
        iteration_begin_seconds: wall-clock time of its begin.
        iteration_seconds: duration of the last whole iteration.
        unlocked_iteration_seconds: mean duration of the unlocked ones.
        connected: whether the trainer is connected now.
        measurement: the sweep that rows belong to; empty before the first.
        steady: whether the GPU's temperature stands still.
        sweep_iterations: iterations that ran in windows of the sweep.
        sweep_seconds: their duration.
        longest_seconds: duration of the longest.
        order: that it runs, if that was asked for; None before a whole iteration.
        mismatch: how the trainer does something else than the plan; empty where it follows it.
        not_held: clocks that the device does not hold; how often it was seen at another one long after the request.
    """

    namespace: Name
    job: Name
    job_uid: Name
    pipeline: Index
    stage: Annotated[int, Field(ge=0, le=255)]
    tensor_rank: Index
    gpu: Name
    gpu_model: Name
    driver: Name
    supported_clocks: Annotated[tuple[Clock, ...], Field(max_length=1024)]
    iteration: Annotated[int, Field(ge=-1, le=2**53)]
    iteration_begin_seconds: Deviation | None = None
    iteration_seconds: Seconds | None = None
    unlocked_iteration_seconds: Seconds | None = None
    connected: bool
    measurement: Annotated[str, Field(max_length=64)] = ""
    steady: bool = False
    sweep_iterations: Index = 0
    sweep_seconds: Deviation = 0.0
    longest_seconds: Deviation = 0.0
    rows: Annotated[tuple[InstructionRow, ...], Field(max_length=8192)] = ()
    blocking: Annotated[tuple[BlockingRow, ...], Field(max_length=1024)] = ()
    not_held: Annotated[dict[Clock, Index], Field(max_length=1024)] = {}
    order: RankOrder | None = None
    mismatch: Name = ""


class NodeReport(_Document):
    """All ranks on one node that were asked for."""

    ranks: Annotated[tuple[RankReport, ...], Field(max_length=256)] = ()

    def encode(self) -> bytes:
        """Return the page's body."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> NodeReport:
        """Load and check a report.

        Raises:
            DocumentError: too large or not valid.
        """
        if len(data) > MAXIMUM_REPORT_BYTES:
            raise DocumentError(f"the report has {len(data)} bytes; at most {MAXIMUM_REPORT_BYTES} are read")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise DocumentError(f"the report is not valid: {first_problem(error)}") from None
