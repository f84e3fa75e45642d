"""The pipeline instructions that Perseus knows, and their one-letter codes.

The codes appear in plan documents (an order is a string such as ``FFBFBB``) and, as numbers, in socket messages.
They are part of both contracts: a letter, once given, never changes its meaning. Standard library only.
"""

from __future__ import annotations

from enum import StrEnum

LONGEST_ORDER = 65_536  # instructions of one rank in one iteration: what a document holds


class Instruction(StrEnum):
    """One kind of work that a pipeline stage does for a microbatch or once in an iteration."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    RECOMPUTE = "recompute"
    LOAD = "load"
    P2P = "p2p"
    ALLREDUCE = "allreduce"
    OPTIMIZER = "optimizer"

    # Enum's own is a function in Python, called at each look into a dictionary.
    __hash__ = str.__hash__

    @property
    def code(self) -> str:
        """The letter of this instruction in the order strings of plan documents."""
        return _CODES[self]

    @property
    def has_clock(self) -> bool:
        """Whether a plan gives this instruction a clock; the others take the time they take."""
        return self in TUNABLE_INSTRUCTIONS

    @classmethod
    def from_code(cls, code: str) -> Instruction:
        """Return the instruction of a letter.

        Raises:
            KeyError: the letter is not one of this schema version.
        """
        return _BY_CODE[code]


TUNABLE_INSTRUCTIONS = frozenset(
    {
        Instruction.FORWARD,
        Instruction.BACKWARD,
        Instruction.BACKWARD_INPUT,
        Instruction.BACKWARD_WEIGHT,
        Instruction.RECOMPUTE,
    }
)

_CODES = {
    Instruction.FORWARD: "F",
    Instruction.BACKWARD: "B",
    Instruction.BACKWARD_INPUT: "I",
    Instruction.BACKWARD_WEIGHT: "W",
    Instruction.RECOMPUTE: "R",
    Instruction.LOAD: "L",
    Instruction.P2P: "P",
    Instruction.ALLREDUCE: "A",
    Instruction.OPTIMIZER: "O",
}
_BY_CODE = {code: instruction for instruction, code in _CODES.items()}
