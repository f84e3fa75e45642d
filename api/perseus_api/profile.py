"""The profile document: time and energy of every pipeline instruction at every GPU clock, with its header.

The body is CSV with the ecosystem's columns ``stage,instruction,frequency,time,energy`` (MHz, seconds, joules of one
GPU; Zeus's files load as they are), optionally ``samples,time_stderr,energy_stderr``; the header is a small JSON
document. Loading checks every row and answers bad input with one sentence that names the row and the fix.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from perseus_api.encoding import first_problem
from perseus_api.errors import DocumentError
from perseus_api.instructions import Instruction

MAXIMUM_PROFILE_BYTES = 4 * 1024 * 1024
MAXIMUM_ROWS = 65_536
MAXIMUM_STAGES = 256
REQUIRED_COLUMNS = ("stage", "instruction", "frequency", "time", "energy")
OPTIONAL_COLUMNS = ("samples", "time_stderr", "energy_stderr")

Text = Annotated[str, Field(max_length=256)]
Watts = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]
Degree = Annotated[int, Field(ge=1, le=65_536)]


class StageGpu(BaseModel):
    """The GPU of one pipeline rank.

    Attributes:
        gpu_model: as NVML names it.
        blocking_power_watts: its power while it is blocked on communication.
        blocking_power_watts_stderr: the standard error of that, where it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    gpu_model: Text = ""
    blocking_power_watts: Watts
    blocking_power_watts_stderr: Watts = 0.0


class BlockingPower(BaseModel):
    """Power of a GPU model while it is blocked on communication, measured at one clock."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    gpu_model: Text = ""
    frequency_megahertz: Annotated[int, Field(ge=1, le=100_000)]
    watts: Watts
    watts_stderr: Watts = 0.0


class ProfileHeader(BaseModel):
    """What a profile was measured on.

    Attributes:
        gpu_model: as NVML names it, such as ``NVIDIA A100-SXM4-80GB``.
        driver: version of its driver.
        blocking_power_watts: power of one GPU while it is blocked on communication, where `stage_gpus` is empty.
        blocking_power_watts_stderr: the standard error of that, where it was measured; of the worst where `stage_gpus`
            lists several.
        stage_gpus: where a pipeline mixes GPU models: the GPU of each pipeline rank, from 0. By rank and not by virtual
            stage, since a rank's chunks share its GPU. Empty: all ranks have `gpu_model`.
        blocking_power_at_clocks: the same by clock, where it was measured.
        stages: number of pipeline stages of the measured model.
        tensor_parallel: GPUs of one stage; energies are of one GPU.
        pipelines: data-parallel pipelines that trained.
        microbatches: of one iteration of one pipeline.
        chunks: model chunks of each pipeline rank; rows are of stages x chunks virtual stages.
        schedule: name of the schedule that ran, if one did.
        model: label of the model, such as ``gpt3-175b``.
        image: image (with digest) of the training software.
        tool_version: version of the tool that measured.
        source: where figures that others measured come from.
        licence: licence of those figures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    gpu_model: Text = ""
    driver: Text = ""
    blocking_power_watts: Watts
    blocking_power_watts_stderr: Watts = 0.0
    blocking_power_at_clocks: Annotated[tuple[BlockingPower, ...], Field(max_length=4096)] = ()
    stage_gpus: Annotated[tuple[StageGpu, ...], Field(max_length=MAXIMUM_STAGES)] = ()
    stages: Annotated[int, Field(ge=1, le=MAXIMUM_STAGES)] | None = None
    tensor_parallel: Degree = 1
    pipelines: Degree | None = None
    microbatches: Degree | None = None
    chunks: Annotated[int, Field(ge=1, le=256)] = 1
    schedule: Text = ""
    model: Text = ""
    image: Text = ""
    tool_version: Text = ""
    source: Text = ""
    licence: Text = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Time and energy of one instruction of one stage at one clock (fixed instructions have one, at clock 0)."""

    frequency_megahertz: int
    time_seconds: float
    energy_joules: float


@dataclass(frozen=True)
class Profile:
    """A checked profile.

    Attributes:
        header: what it was measured on.
        measurements: by (stage, instruction), in order of falling clock; one clock never appears twice. Where
            ranks hold several model chunks, the stage is the virtual stage.
    """

    header: ProfileHeader
    measurements: dict[tuple[int, Instruction], tuple[Measurement, ...]]

    @property
    def stages(self) -> int:
        """Number of stages: one more than the highest stage index."""
        return 1 + max(stage for stage, _ in self.measurements)

    def blocking_power_of(self, rank: int) -> float:
        """Return the power in watts of a pipeline rank's GPU while it is blocked on communication.

        Raises:
            IndexError: the header lists the GPUs of fewer ranks.
        """
        gpus = self.header.stage_gpus
        return gpus[rank].blocking_power_watts if gpus else self.header.blocking_power_watts


def parse_profile(csv_text: str, header_text: str | None, blocking_power_watts: float | None = None) -> Profile:
    """Parse and check a profile.

    Args:
        csv_text: the CSV body, at most `MAXIMUM_PROFILE_BYTES`.
        header_text: the JSON header, or None for a bare CSV such as Zeus writes.
        blocking_power_watts: replaces the header's, and that of every rank in it; required when there is no header.

    Raises:
        DocumentError: what is wrong and how to mend it, in one sentence.
    """
    for name, text in (("profile", csv_text), ("profile header", header_text or "")):
        if len(text) > MAXIMUM_PROFILE_BYTES:
            raise DocumentError(f"the {name} has {len(text)} characters; at most {MAXIMUM_PROFILE_BYTES} are read")
    header = _parse_header(header_text, blocking_power_watts)
    return Profile(header, _parse_rows(csv_text))


def _parse_header(text: str | None, blocking_power_watts: float | None) -> ProfileHeader:
    if text is None and blocking_power_watts is None:
        raise DocumentError("the profile has no header: add header.json with blockingPowerWatts")
    try:
        header = (
            ProfileHeader(blocking_power_watts=blocking_power_watts or 0.0)
            if text is None
            else ProfileHeader.model_validate_json(text)
        )
        if blocking_power_watts is not None:
            watts = {"blocking_power_watts": blocking_power_watts, "blocking_power_watts_stderr": 0.0}
            gpus = [{**each.model_dump(), **watts} for each in header.stage_gpus]
            header = ProfileHeader.model_validate({**header.model_dump(), **watts, "stage_gpus": gpus})
    except ValidationError as error:
        raise DocumentError(f"the profile header is not valid: {first_problem(error)}") from None
    return header


def _parse_rows(text: str) -> dict[tuple[int, Instruction], tuple[Measurement, ...]]:
    reader = csv.reader(io.StringIO(text))
    try:
        columns = [name.strip() for name in next(reader, [])]
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        unknown = [name for name in columns if name not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS]
        if missing or unknown or len(set(columns)) != len(columns):
            raise DocumentError(
                f"the profile's first line must name the columns {','.join(REQUIRED_COLUMNS)}"
                f" (optional: {','.join(OPTIONAL_COLUMNS)})"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (
                    f"; unknown: {', '.join(each if each.isprintable() else repr(each) for each in unknown)[:100]}"
                    if unknown
                    else ""
                )
            )
        found: dict[tuple[int, Instruction], dict[int, Measurement]] = {}
        for cells in reader:
            if not cells:
                continue
            row = reader.line_num
            if row > MAXIMUM_ROWS:
                raise DocumentError(f"the profile has more than {MAXIMUM_ROWS} rows: keep one row for each clock")
            if len(cells) != len(columns):
                raise DocumentError(f"profile row {row} has {len(cells)} cells; {len(columns)} columns are named")
            key, measurement = _parse_row(row, dict(zip(columns, cells, strict=True)))
            clocks = found.setdefault(key, {})
            if measurement.frequency_megahertz in clocks:
                raise DocumentError(
                    f"profile row {row} measures stage {key[0]} {key[1].value} at "
                    f"{measurement.frequency_megahertz} MHz a second time: keep one row for each clock"
                )
            clocks[measurement.frequency_megahertz] = measurement
    except csv.Error as error:
        raise DocumentError(f"the profile is not CSV at row {reader.line_num}: {error}") from None
    if not found:
        raise DocumentError("the profile has no rows: measure at least two clocks of every instruction")
    _check_complete(found)
    return {
        key: tuple(sorted(clocks.values(), key=lambda each: -each.frequency_megahertz))
        for key, clocks in sorted(found.items())
    }


def _parse_row(row: int, cells: dict[str, str]) -> tuple[tuple[int, Instruction], Measurement]:
    stage = _integer(row, "stage", cells["stage"], 0, MAXIMUM_STAGES - 1)
    try:
        instruction = Instruction(cells["instruction"].strip())
    except ValueError:
        known = ", ".join(each.value for each in Instruction)
        raise DocumentError(
            f"profile row {row}: instruction {cells['instruction'][:40]!r} is unknown; use one of {known}"
        ) from None
    frequency = _integer(row, "frequency", cells["frequency"], 1 if instruction.has_clock else 0, 100_000)
    time_seconds = _number(row, "time", cells["time"], "seconds")
    energy_joules = _number(row, "energy", cells["energy"], "joules")
    return (stage, instruction), Measurement(frequency, time_seconds, energy_joules)


def _integer(row: int, column: str, cell: str, least: int, most: int) -> int:
    try:
        value = int(cell)
    except ValueError:
        raise DocumentError(f"profile row {row}: {column} must be a whole number, not {cell[:40]!r}") from None
    if not least <= value <= most:
        raise DocumentError(f"profile row {row}: {column} must be from {least} to {most}, not {value}")
    return value


def _number(row: int, column: str, cell: str, unit: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise DocumentError(f"profile row {row}: {column} must be a number of {unit}, not {cell[:40]!r}") from None
    if not math.isfinite(value) or value <= 0 or value > 1e9:
        raise DocumentError(
            f"profile row {row}: {column} must be a positive number of {unit}, not {cell[:40].strip()}: measure again"
        )
    return value


def _check_complete(found: dict[tuple[int, Instruction], dict[int, Measurement]]) -> None:
    stages = 1 + max(stage for stage, _ in found)
    for stage in range(stages):
        if not any(key[0] == stage for key in found):
            raise DocumentError(f"the profile has no row for stage {stage}: it must cover stages 0 to {stages - 1}")
    for (stage, instruction), clocks in found.items():
        if instruction.has_clock and len(clocks) < 2:
            raise DocumentError(
                f"the profile has only one clock for stage {stage} {instruction.value}: measure at least two"
            )
        if not instruction.has_clock and len(clocks) > 1:
            raise DocumentError(
                f"the profile has several rows for stage {stage} {instruction.value}, which has no clock: keep one"
            )
