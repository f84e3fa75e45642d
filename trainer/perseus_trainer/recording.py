"""The order that really ran, recorded at the hooks: how an unknown schedule becomes one that the planner knows.

Each rank records its own; the orders of all stages of a pipeline, together in `order_document`, are what the planner
loads (`perseus_planner.given`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from perseus_api.instructions import Instruction

MAXIMUM_ENTRIES = 65_536  # of one rank and iteration: what an order in a document may have


class Recorded(NamedTuple):
    """One instruction that ran.

    Attributes:
        instruction: the kind of work.
        microbatch: that it was for.
        chunk: model chunk of the rank.
    """

    instruction: Instruction
    microbatch: int
    chunk: int


RecordedOrder = tuple[Recorded, ...]


class Recorder:
    """Keeps the order of the iteration that runs, and that of the last whole one."""

    def __init__(self) -> None:
        """Begin with nothing recorded."""
        self._running: list[tuple[int, int, int]] | None = None
        self._last: list[tuple[int, int, int]] = []

    def begin_iteration(self) -> None:
        """An iteration begins: what ran of an unfinished one is forgotten."""
        self._running = []

    def begin_instruction(self, arguments: tuple[int, int, int]) -> None:
        """An instruction begins: its letter as a number, its microbatch and its chunk."""
        running = self._running
        if running is not None and len(running) <= MAXIMUM_ENTRIES:
            running.append(arguments)

    def end_iteration(self) -> None:
        """An iteration ends: its order is the recorded one, unless nothing ran or more than a document holds."""
        running, self._running = self._running, None
        if running and len(running) <= MAXIMUM_ENTRIES:
            self._last = running

    def order(self) -> RecordedOrder:
        """Return the order of the last whole iteration; empty before there was one."""
        return tuple(
            Recorded(Instruction.from_code(chr(code)), microbatch, chunk) for code, microbatch, chunk in self._last
        )


def order_document(orders: Sequence[RecordedOrder]) -> str:
    """Return the orders of a pipeline's stages, from stage 0 on, as the JSON that the planner loads.

    Raises:
        ValueError: a stage has recorded nothing.
    """
    for stage, order in enumerate(orders):
        if not order:
            raise ValueError(f"stage {stage} has recorded no order: it has to finish an iteration first")
    return json.dumps(
        {
            "order": ["".join(step.instruction.code for step in order) for order in orders],
            "microbatches": [[step.microbatch for step in order] for order in orders],
            "chunks": [[step.chunk for step in order] for order in orders],
        }
    )
