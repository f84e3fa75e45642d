"""From samples to figures: energy and time of an iteration in each phase, savings, reaction times. Pure.

Energies are differences of the agents' energy counters (NVML's counter underneath) over whole iterations; times are
differences of iteration begins on stage 0. Nothing here is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.observation import Rank, Sample

# A rank's counters move when its own iteration begins, up to a pipeline's drain away from stage 0's begin. This long
# after stage 0's begin every rank has passed the boundary and none has reached the next.
SETTLED_AFTER_BEGIN_SECONDS = 0.9


@dataclass(frozen=True)
class Phase:
    """Measured figures of a stretch of whole iterations.

    Attributes:
        name: baseline, planned, straggler or recovered.
        iterations: how many iterations were averaged.
        iteration_seconds: mean time from one iteration's begin to the next on stage 0, synchronisation included.
        iteration_joules: mean energy of all GPUs in one iteration.
        pipeline_joules: the same for each pipeline.
        begin_seconds: wall-clock time at which the phase began.
        end_seconds: wall-clock time at which it ended.
    """

    name: str
    iterations: int
    iteration_seconds: float
    iteration_joules: float
    pipeline_joules: dict[int, float]
    begin_seconds: float
    end_seconds: float


def iteration_begins(samples: Iterable[Sample], pipeline: int) -> dict[int, float]:
    """Return the wall-clock time of each iteration's begin that the samples saw, by iteration."""
    begins: dict[int, float] = {}
    for sample in samples:
        if pipeline in sample.pipeline_iteration and pipeline in sample.iteration_begin_seconds:
            begins.setdefault(sample.pipeline_iteration[pipeline], sample.iteration_begin_seconds[pipeline])
    return begins


def measure_phase(name: str, samples: list[Sample], first_iteration: int, end_iteration: int) -> Phase:
    """Average over the iterations from `first_iteration` up to, not including, `end_iteration`.

    Raises:
        ValueError: the samples do not cover them.
    """
    begins = iteration_begins(samples, 0)
    if first_iteration not in begins or end_iteration not in begins or end_iteration <= first_iteration:
        raise ValueError(f"phase {name}: iterations {first_iteration} to {end_iteration} were not all seen")
    begin, end = begins[first_iteration], begins[end_iteration]
    before = _sample_at(samples, begin + SETTLED_AFTER_BEGIN_SECONDS)
    after = _sample_at(samples, end + SETTLED_AFTER_BEGIN_SECONDS)
    joules = {rank: _joules_of_iteration(name, rank, before, after) for rank in before.ranks}
    pipelines = sorted({pipeline for pipeline, _ in joules})
    pipeline_joules = {
        pipeline: sum(value for rank, value in joules.items() if rank[0] == pipeline) for pipeline in pipelines
    }
    return Phase(
        name=name,
        iterations=end_iteration - first_iteration,
        iteration_seconds=(end - begin) / (end_iteration - first_iteration),
        iteration_joules=sum(joules.values()),
        pipeline_joules=pipeline_joules,
        begin_seconds=begin,
        end_seconds=end,
    )


def lost_iterations(first: Sample, last: Sample) -> int:
    """Return how many iterations the training began between two samples that no rank's agent counted as finished.

    A rank's counter moves when the next iteration begins, so that one under way at either end is no loss.
    """
    lost = 0
    for rank in first.ranks.keys() & last.ranks.keys():
        begun = last.pipeline_iteration[rank[0]] - first.pipeline_iteration[rank[0]]
        finished = last.ranks[rank].iterations - first.ranks[rank].iterations
        lost = max(lost, round(begun - finished) - 1)
    return max(0, lost)


def savings_percent(joules: float, baseline_joules: float) -> float:
    """Return 100 x (1 - energy / baseline)."""
    return 100.0 * (1.0 - joules / baseline_joules)


def stretched_baseline_joules(
    baseline: Phase, pipeline: int, seconds: float, stages: int, blocking_watts: float
) -> float:
    """Return what a pipeline at full speed would have used in an iteration that a straggler stretches.

    design.md, Measuring: measured energy of an unlocked iteration + P_blocking x the time beyond the unlocked duration,
    for each of the pipeline's GPUs.
    """
    beyond_seconds = max(0.0, seconds - baseline.iteration_seconds)
    return baseline.pipeline_joules[pipeline] + blocking_watts * beyond_seconds * stages


def _sample_at(samples: list[Sample], time_seconds: float) -> Sample:
    for sample in samples:
        if sample.time_seconds >= time_seconds:
            return sample
    raise ValueError("the recording ended before the phase did")


def _joules_of_iteration(name: str, rank: Rank, before: Sample, after: Sample) -> float:
    first, last = before.ranks[rank], after.ranks[rank]
    iterations = last.iterations - first.iterations
    if iterations <= 0:
        raise ValueError(f"phase {name}: pipeline {rank[0]} stage {rank[1]} finished no iteration")
    return (last.energy_joules - first.energy_joules) / iterations
