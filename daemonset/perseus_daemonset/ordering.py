"""The order that a rank runs, as its boundaries tell: what an unknown schedule is planned from. Pure.

It counts only when iterations repeat it: a message that was dropped, or a first iteration that is unlike all others,
makes an order that does not come again.
"""

from __future__ import annotations

from perseus_api.instructions import LONGEST_ORDER, Instruction
from perseus_api.measurements import RankOrder
from perseus_api.messages import Boundary, BoundaryKind

Ran = tuple[Instruction | None, int, int]  # instruction, microbatch, chunk


class OrderBooks:
    """Keeps the order of the iteration that runs, and that of the last whole one."""

    def __init__(self) -> None:
        """Begin with nothing recorded."""
        self._running: list[Ran] | None = None
        self._iteration = -1
        self._placement = 0
        self._ends = 0
        self._last: tuple[list[Ran], int, int] = [], 0, 0  # what ran, how chunks lie, how often in a row

    def take(self, boundary: Boundary) -> None:
        """Take one boundary."""
        kind, running = boundary.kind, self._running
        if kind is BoundaryKind.INSTRUCTION_BEGIN:
            if running is not None and len(running) <= LONGEST_ORDER:
                running.append(boundary[3:])
        elif kind is BoundaryKind.INSTRUCTION_END:
            self._ends += 1
        elif kind is BoundaryKind.ITERATION_BEGIN:
            self._running, self._iteration, self._placement, self._ends = [], boundary.iteration, boundary.chunk, 0
        else:
            self._running = None
            if kind is BoundaryKind.ITERATION_END and running and boundary.iteration == self._iteration:
                self._finish(running)

    def interrupted(self) -> None:
        """The trainer's connection ended: what runs is no whole iteration."""
        self._running = None

    def order(self, most: int = LONGEST_ORDER) -> RankOrder | None:
        """Return the order of the last whole iteration; None before there was one, or if it has more entries."""
        ran, placement, repeats = self._last
        if not 0 < len(ran) <= most:
            return None
        chunks = tuple(chunk for _, _, chunk in ran)
        return RankOrder(
            letters="".join(instruction.code for instruction, _, _ in ran if instruction is not None),
            microbatches=tuple(microbatch for _, microbatch, _ in ran),
            chunks=chunks if any(chunks) else (),
            placement=placement,
            repeats=repeats,
        )

    def _finish(self, running: list[Ran]) -> None:
        # A begin or an end that was dropped leaves their numbers unequal.
        if self._ends != len(running) or len(running) > LONGEST_ORDER:
            return
        last, placement, repeats = self._last
        same = placement == self._placement and last == running
        # In one assignment: the page is asked from another thread.
        self._last = (last, placement, repeats + 1) if same else (running, self._placement, 1)
