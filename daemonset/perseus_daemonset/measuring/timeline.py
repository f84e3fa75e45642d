"""What a rank did when: boundaries become stretches of instructions, of waiting, and of what lies between iterations.

A stretch of waiting is one that ends with an instruction: the GPU was blocked on a message. After an iteration's last
instruction comes what is not waiting alone (gradient synchronisation, optimiser, data), so it is kept apart. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind


class Idle(StrEnum):
    """What a GPU does that runs no instruction."""

    WAITING = "waiting"
    BETWEEN = "between"


class Running(NamedTuple):
    """An instruction of one of the rank's model chunks."""

    instruction: Instruction
    chunk: int


Doing = Running | Idle


@dataclass(frozen=True, slots=True)
class Stretch:
    """One thing that a rank did, from one moment to another; None: it is not known what."""

    doing: Doing | None
    begin_nanoseconds: int
    end_nanoseconds: int


class Timeline:
    """Turns boundaries into stretches that follow one another without gaps."""

    def __init__(self) -> None:
        """Begin before the first boundary."""
        self._since: int | None = None
        self._running: tuple[Instruction, int, int] | None = None
        self._lost = False

    def take(self, boundary: Boundary) -> Stretch | None:
        """Take a boundary; return the stretch that ends with it."""
        begin, now = self._since, boundary.time_nanoseconds
        running = self._running
        kind = boundary.kind
        instruction = boundary.instruction
        key = None if instruction is None else (instruction, boundary.microbatch, boundary.chunk)
        doing: Doing | None
        if kind is BoundaryKind.INSTRUCTION_END:
            # A message that was dropped: its partner stands alone.
            doing = Running(running[0], running[2]) if running is not None and running == key else None
            self._running = None
        elif running is not None:
            doing = None
            self._running = key if kind is BoundaryKind.INSTRUCTION_BEGIN else None
        elif kind is BoundaryKind.INSTRUCTION_BEGIN:
            doing = Idle.WAITING
            self._running = key
        else:
            doing = Idle.BETWEEN
        self._since = now
        if begin is None or now <= begin:
            return None
        return Stretch(doing, begin, now)

    def interrupt(self) -> None:
        """The trainer was lost: whatever comes next follows on nothing."""
        self._since = self._running = None
