"""A second opinion: replays a plan as a discrete-event simulation of the pipeline's ranks.

Shares nothing with the solver: no graph, no integer times, no cost table. It has its own idea of what waits for what
and of what energy is, so that a mistake in one of the two shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perseus_api.instructions import Instruction
from perseus_api.profile import Profile


@dataclass(frozen=True)
class ReplayStep:
    """One instruction of a plan as its file names it; `stage` is the stage of the profile that measured it."""

    instruction: Instruction
    microbatch: int
    stage: int
    frequency_megahertz: int


@dataclass(frozen=True)
class Replay:
    """What an iteration takes: seconds, and joules of one GPU of each rank, blocking included."""

    seconds: float
    joules: float


class ReplayError(ValueError):
    """The plan cannot run: the text names the rank and the entry."""


def replay(profile: Profile, ranks: Sequence[Sequence[ReplayStep]]) -> Replay:
    """Run a plan.

    Args:
        profile: measured times and energies.
        ranks: what each rank runs, in order.

    Raises:
        ReplayError: a clock was not measured, or the ranks wait for each other.
    """
    done: dict[tuple[Instruction, int, int], float] = {}
    last_stage = max(step.stage for row in ranks for step in row)
    clock_now = [0.0] * len(ranks)
    place = [0] * len(ranks)
    watts = profile.header.blocking_power_watts
    busy_joules = 0.0
    busy_seconds = 0.0
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(ranks):
            while place[rank] < len(row):
                step = row[place[rank]]
                needed = _needed(step, last_stage)
                if any(each not in done for each in needed):
                    break
                seconds, joules = _measured(profile, rank, place[rank], step)
                begin = max([clock_now[rank], *(done[each] for each in needed)])
                clock_now[rank] = begin + seconds
                done[step.instruction, step.stage, step.microbatch] = clock_now[rank]
                busy_joules += joules
                busy_seconds += seconds
                place[rank] += 1
                moved = True
    for rank, row in enumerate(ranks):
        if place[rank] < len(row):
            step = row[place[rank]]
            raise ReplayError(
                f"rank {rank} waits for ever before entry {place[rank]}, {step.instruction.value} of microbatch "
                f"{step.microbatch}"
            )
    seconds = max(clock_now)
    return Replay(seconds, busy_joules + watts * (len(ranks) * seconds - busy_seconds))


def _needed(step: ReplayStep, last_stage: int) -> list[tuple[Instruction, int, int]]:
    """What must have ended elsewhere before a step can begin."""
    if step.instruction is Instruction.FORWARD:
        return [(Instruction.FORWARD, step.stage - 1, step.microbatch)] if step.stage else []
    if step.instruction is Instruction.BACKWARD:
        if step.stage == last_stage:
            return [(Instruction.FORWARD, step.stage, step.microbatch)]
        return [(Instruction.BACKWARD, step.stage + 1, step.microbatch)]
    return []


def _measured(profile: Profile, rank: int, place: int, step: ReplayStep) -> tuple[float, float]:
    for each in profile.measurements.get((step.stage, step.instruction), ()):
        if each.frequency_megahertz == step.frequency_megahertz:
            return each.time_seconds, each.energy_joules
    raise ReplayError(
        f"rank {rank} entry {place}: {step.instruction.value} of stage {step.stage} was never measured at "
        f"{step.frequency_megahertz} MHz"
    )
