"""One entry of a stage's order. Apart from the pipeline, so that what makes orders needs nothing else."""

from __future__ import annotations

from typing import NamedTuple

from perseus_api.instructions import Instruction


class Step(NamedTuple):
    """What a pipeline rank runs at one place of its order.

    Attributes:
        instruction: the kind of work.
        microbatch: that it is for; 0 for what runs once in an iteration.
        chunk: model chunk of the rank; 0 where a rank holds only one.
    """

    instruction: Instruction
    microbatch: int
    chunk: int = 0


Order = tuple[Step, ...]  # of one rank


def letters(order: Order) -> str:
    """Return an order as documents have it: a letter for each instruction."""
    return "".join(step.instruction.code for step in order)
