"""The pipeline that a job's spec asks for, and what a profile must hold for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from perseus_api.instructions import Instruction
from perseus_api.job import PerseusJobSpec
from perseus_api.profile import Profile
from perseus_api.schedules import JobSchedule
from perseus_planner import Pipeline

_WHOLE = (Instruction.FORWARD, Instruction.BACKWARD)
_SPLIT = (Instruction.FORWARD, Instruction.BACKWARD_INPUT, Instruction.BACKWARD_WEIGHT)


def pipeline_of_job(spec: PerseusJobSpec) -> Pipeline:
    """Return the pipeline of a job whose schedule has a name; for others see `perseus_planner.recorded`."""
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


def rows_of_orders(pipeline: Pipeline) -> set[tuple[int, Instruction]]:
    """Return what a profile must hold for orders that were recorded, by virtual stage."""
    return {
        (pipeline.virtual_stage(rank, chunk), instruction)
        for rank, order in enumerate(pipeline.orders())
        for instruction, chunk in {(step.instruction, step.chunk) for step in order}
    }


def as_seen(profile: Profile, pipeline: Pipeline) -> Profile:
    """Return a profile without the fixed instructions that ranks were not seen to tell.

    The planner would put them into the orders, and agents wait for them in vain. Transfers stand in no order.
    """
    seen = rows_of_orders(pipeline)
    kept = {
        row: measured
        for row, measured in profile.measurements.items()
        if row[1].has_clock or row[1] is Instruction.P2P or row in seen
    }
    return Profile(profile.header, kept)
