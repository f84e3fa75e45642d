"""A second opinion: replays a plan as a discrete-event simulation of the pipeline's ranks.

Shares nothing with the solver: no graph, no integer times, no cost table. It has its own idea of what waits for what
and of what energy is, so that a mistake in one of the two shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile

_GRADIENTS = (Instruction.BACKWARD, Instruction.BACKWARD_INPUT)


@dataclass(frozen=True)
class ReplayStep:
    """One instruction of a plan as its file names it; `stage` is the stage of the profile that measured it."""

    instruction: Instruction
    microbatch: int
    stage: int
    frequency_megahertz: int


@dataclass(frozen=True)
class Replay:
    """What an iteration takes: seconds, joules of one GPU of each rank (blocking included), switches of each rank."""

    seconds: float
    joules: float
    switches: tuple[int, ...]


class ReplayError(ValueError):
    """The plan cannot run: the text names the rank and the entry."""


def replay(
    profile: Profile,
    ranks: Sequence[Sequence[ReplayStep]],
    switch_seconds: float = 0.0,
    switch_joules: float = 0.0,
) -> Replay:
    """Run a plan.

    Args:
        profile: measured times and energies.
        ranks: what each rank runs, in order.
        switch_seconds: by which a change of clock delays the instruction after it.
        switch_joules: that a change of clock costs one GPU.

    Raises:
        ReplayError: a clock was not measured, or the ranks wait for each other.
    """
    return _Run(profile, ranks, switch_seconds, switch_joules).result()


class _Run:
    def __init__(
        self, profile: Profile, ranks: Sequence[Sequence[ReplayStep]], switch_seconds: float, switch_joules: float
    ) -> None:
        self.profile = profile
        self.ranks = ranks
        self.switch_seconds, self.switch_joules = switch_seconds, switch_joules
        self.rank_of = {step.stage: rank for rank, row in enumerate(ranks) for step in row}
        self.last_stage = max(self.rank_of)
        self.planned = {(step.instruction, step.stage, step.microbatch) for row in ranks for step in row}
        self.sends_in_order = {step.stage for row in ranks for step in row if step.instruction is Instruction.P2P}
        self.done: dict[tuple[Instruction, int, int], float] = {}
        self.now = [0.0] * len(ranks)
        self.busy_seconds = [0.0] * len(ranks)
        self.joules = 0.0
        self.switches = [0] * len(ranks)
        # Iterations follow each other: the first instruction finds the clock of the last one.
        self.clock = [
            next((step.frequency_megahertz for step in reversed(row) if step.instruction.has_clock), 0) for row in ranks
        ]

    def result(self) -> Replay:
        place = [0] * len(self.ranks)
        moved = True
        while moved:
            moved = False
            for rank, row in enumerate(self.ranks):
                while place[rank] < len(row) and self._runs(rank, place[rank], row[place[rank]]):
                    place[rank] += 1
                    moved = True
        for rank, row in enumerate(self.ranks):
            if place[rank] < len(row):
                step = row[place[rank]]
                raise ReplayError(
                    f"rank {rank} waits for ever before entry {place[rank]}, {step.instruction.value} of microbatch "
                    f"{step.microbatch}"
                )
        seconds = max(self.now)
        waiting = sum(
            self.profile.blocking_power_of(rank) * (seconds - busy) for rank, busy in enumerate(self.busy_seconds)
        )
        return Replay(seconds, self.joules + waiting, tuple(self.switches))

    def _runs(self, rank: int, place: int, step: ReplayStep) -> bool:
        """Run a step if all that it waits for has ended."""
        needed = self._needed(step)
        if any(each not in self.done for each in needed):
            return False
        begin = max([self.now[rank], *(self._arrival(each, rank) for each in needed)])
        if step.instruction.has_clock and step.frequency_megahertz != self.clock[rank]:
            self.clock[rank] = step.frequency_megahertz
            self.switches[rank] += 1
            self.joules += self.switch_joules
            begin += self.switch_seconds
        found = self._measured(rank, place, step)
        self.now[rank] = self.done[step.instruction, step.stage, step.microbatch] = begin + found.time_seconds
        self.busy_seconds[rank] += found.time_seconds
        self.joules += found.energy_joules
        return True

    def _needed(self, step: ReplayStep) -> list[tuple[Instruction, int, int]]:
        """What must have ended before a step can begin, beyond the step before it."""
        stage, microbatch = step.stage, step.microbatch
        if step.instruction is Instruction.FORWARD:
            return [(Instruction.FORWARD, stage - 1, microbatch)] if stage else []
        if step.instruction is Instruction.RECOMPUTE:
            return [(Instruction.FORWARD, stage, microbatch)]
        if step.instruction is Instruction.BACKWARD_WEIGHT:
            return [(Instruction.BACKWARD_INPUT, stage, microbatch)]
        if step.instruction not in _GRADIENTS:
            return []
        needed = []
        if stage == self.last_stage:
            needed.append((Instruction.FORWARD, stage, microbatch))
        else:
            split = (Instruction.BACKWARD_INPUT, stage + 1, microbatch) in self.planned
            needed.append((_GRADIENTS[split], stage + 1, microbatch))
        if (Instruction.RECOMPUTE, stage, microbatch) in self.planned:
            needed.append((Instruction.RECOMPUTE, stage, microbatch))
        return needed

    def _arrival(self, source: tuple[Instruction, int, int], rank: int) -> float:
        """When what a step ended reaches a rank: later by a transfer between ranks, where the profile measures it."""
        end = self.done[source]
        stage = source[1]
        transfer = self.profile.measurements.get((stage, Instruction.P2P))
        if transfer is None or self.rank_of[stage] == rank or stage in self.sends_in_order:
            return end
        self.joules += transfer[0].energy_joules
        return end + transfer[0].time_seconds

    def _measured(self, rank: int, place: int, step: ReplayStep) -> Measurement:
        for each in self.profile.measurements.get((step.stage, step.instruction), ()):
            if not step.instruction.has_clock or each.frequency_megahertz == step.frequency_megahertz:
                return each
        raise ReplayError(
            f"rank {rank} entry {place}: {step.instruction.value} of stage {step.stage} was never measured at "
            f"{step.frequency_megahertz} MHz"
        )
