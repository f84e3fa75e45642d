"""How long one rank's instructions take, and how long they should have taken at the clock that was asked for. Pure.

Observed over expected time says which stage is at fault when a pipeline is slow: a stage that merely waits for another
has instructions as long as ever. What is not in the profile, or ran while the clock was changed under it, is counted
and not compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind

from perseus_daemonset.follower import RankPlan

_BEGIN, _END = BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class InstructionTimes:
    """Sums over all instructions of one kind.

    Attributes:
        count: how many ended.
        seconds: what they took.
        compared_seconds: what those of them took whose expected time is known.
        expected_seconds: what these should have taken.
    """

    count: int = 0
    seconds: float = 0.0
    compared_seconds: float = 0.0
    expected_seconds: float = 0.0


class InstructionBooks:
    """The instructions of one rank.

    Attributes:
        times: by instruction.
    """

    def __init__(self) -> None:
        """Open the books."""
        self.times: dict[Instruction, InstructionTimes] = {}
        self._begin: Boundary | None = None
        self._clock: int | None = None

    def take(self, boundary: Boundary, megahertz: int | None, plan: RankPlan | None) -> None:
        """Take one boundary.

        Args:
            boundary: of an instruction or an iteration.
            megahertz: clock that is locked now, None for unlocked.
            plan: that knows the expected times.
        """
        kind, iteration, now, instruction, microbatch, chunk = boundary
        if kind is _BEGIN:
            self._begin, self._clock = boundary, megahertz
            return
        begin, self._begin = self._begin, None
        if kind is not _END or begin is None or instruction is None:
            return
        seconds = (now - begin.time_nanoseconds) / _NANOSECONDS
        if begin[3:] != (instruction, microbatch, chunk) or begin.iteration != iteration or seconds < 0:
            return
        times = self.times.get(instruction)
        if times is None:
            times = self.times[instruction] = InstructionTimes()
        times.count += 1
        times.seconds += seconds
        expected = plan.expected_seconds(boundary, megahertz) if plan is not None and megahertz == self._clock else None
        if expected is not None:
            times.compared_seconds += seconds
            times.expected_seconds += expected

    def interrupted(self) -> None:
        """The trainer's connection ended: what runs is not counted."""
        self._begin = None
