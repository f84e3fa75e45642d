"""The profile that a sweep's rows become: the CSV that every tool of the ecosystem reads, and its header. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from perseus_api.profile import BlockingPower, ProfileHeader, StageGpu

from perseus_operator.profiling.merging import Blocking, Measured, blocking_power

_COLUMNS = "stage,instruction,frequency,time,energy,samples,time_stderr,energy_stderr"


@dataclass(frozen=True)
class Subject:
    """What was measured.

    Attributes:
        models: GPU model of each stage.
        driver: version of the driver.
        tensor_parallel: GPUs of a stage.
        pipelines: data-parallel pipelines of the job.
        microbatches: of one iteration.
        schedule: its name.
        chunks: model chunks of each rank.
        model: label of the model.
        image: image of the training software, with its digest.
    """

    models: tuple[str, ...]
    driver: str
    tensor_parallel: int
    pipelines: int
    microbatches: int
    schedule: str
    model: str = ""
    image: str = ""
    chunks: int = 1


def profile_csv(measured: Measured) -> str:
    """Return the rows as CSV, by virtual stage and instruction, clocks falling."""
    highest = max(measured.rows, default=0)
    rows = sorted(
        (stage, instruction, -clock if instruction.has_clock else 0, row)
        for clock, by_key in measured.rows.items()
        for (stage, instruction), row in by_key.items()
        if instruction.has_clock or clock == highest  # What has no clock stands once.
    )
    lines = [
        f"{stage},{instruction.value},{-clock},{row.time_seconds:.9g},{row.energy_joules:.9g},{row.samples},"
        f"{row.time_stderr:.3g},{row.energy_stderr:.3g}"
        for stage, instruction, clock, row in rows
    ]
    return "\n".join([_COLUMNS, *lines]) + "\n"


def profile_header(measured: Measured, subject: Subject, tool_version: str) -> ProfileHeader | None:
    """Return the header; None where no plan can be made, since some GPU model's power of waiting is not known."""
    powers: dict[str, Blocking] = {}
    for model in set(subject.models):
        power = blocking_power(measured.blocking.get(model, {}))
        if power is None:
            return None
        powers[model] = Blocking(round(power.watts, 3), round(power.watts_stderr, 3))
    by_stage = [powers[model] for model in subject.models]
    mixed = len(powers) > 1
    return ProfileHeader(
        gpu_model=subject.models[0],
        driver=subject.driver,
        blocking_power_watts=sum(each.watts for each in by_stage) / len(by_stage),
        blocking_power_watts_stderr=max(each.watts_stderr for each in by_stage),
        stage_gpus=tuple(
            StageGpu(
                gpu_model=model, blocking_power_watts=each.watts, blocking_power_watts_stderr=each.watts_stderr
            )
            for model, each in zip(subject.models, by_stage, strict=True)
        )
        if mixed
        else (),
        blocking_power_at_clocks=tuple(
            BlockingPower(
                gpu_model=model, frequency_megahertz=clock, watts=round(each.watts, 3),
                watts_stderr=round(each.watts_stderr, 3),
            )
            for model, by_clock in sorted(measured.blocking.items())
            for clock, each in sorted(by_clock.items(), reverse=True)
        ),
        stages=len(subject.models),
        tensor_parallel=subject.tensor_parallel,
        pipelines=subject.pipelines,
        microbatches=subject.microbatches,
        schedule=subject.schedule,
        chunks=subject.chunks,
        model=subject.model,
        image=subject.image,
        tool_version=tool_version,
    )  # fmt: skip
