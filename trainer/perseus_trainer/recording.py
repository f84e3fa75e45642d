"""The order that really ran, recorded at the hooks: how an unknown schedule becomes one that the planner knows.

Each rank records its own; the orders of all stages of a pipeline, together in `order_document`, are what the planner
loads (`perseus_planner.given`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from perseus_api.instructions import LONGEST_ORDER, Instruction


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
        self._running: deque[tuple[int, int, int]] = deque()
        self._last: list[tuple[int, int, int]] = []

    def begin_iteration(self) -> Callable[[tuple[int, int, int]], None]:
        """An iteration begins: what ran of an unfinished one is forgotten.

        Returns:
            What to call when an instruction begins, with its letter as a number, its microbatch and its chunk. It is no
            function in Python, since each instruction waits for it.
        """
        self._running = deque(maxlen=LONGEST_ORDER + 1)
        return self._running.append

    def end_iteration(self) -> None:
        """An iteration ends: its order is the recorded one, unless nothing ran or more than a document holds."""
        if 0 < len(self._running) <= LONGEST_ORDER:
            self._last = list(self._running)

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
