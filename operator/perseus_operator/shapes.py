"""The pipeline that a job's spec asks for, and what a profile must hold for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from perseus_api.instructions import Instruction
from perseus_api.job import PerseusJobSpec
from perseus_api.schedules import JobSchedule
from perseus_planner import Pipeline

_WHOLE = (Instruction.FORWARD, Instruction.BACKWARD)
_SPLIT = (Instruction.FORWARD, Instruction.BACKWARD_INPUT, Instruction.BACKWARD_WEIGHT)


def pipeline_of_job(spec: PerseusJobSpec) -> Pipeline:
    """Return the pipeline of a job."""
    parallelism = spec.parallelism
    return Pipeline(
        parallelism.stages,
        parallelism.microbatches,
        spec.schedule.planned,
        parallelism.tensor_parallel,
        parallelism.chunks,
    )


def needed_rows(pipeline: Pipeline, schedule: JobSchedule) -> Iterator[tuple[int, Instruction]]:
    """Yield what a profile must hold for a schedule, by virtual stage; without making the orders."""
    split = schedule in (JobSchedule.ZB_H1, JobSchedule.ZBV)
    for stage in range(pipeline.virtual_stages):
        for instruction in _SPLIT if split else _WHOLE:
            yield stage, instruction
        if schedule is JobSchedule.EARLY_RECOMPUTE_1F1B and stage < pipeline.virtual_stages - 1:
            yield stage, Instruction.RECOMPUTE
