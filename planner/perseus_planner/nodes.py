"""The steps of all orders as arrays, found by what they are; and how a person is told of one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from perseus_api.instructions import Instruction

from perseus_planner.pipeline import Order, Pipeline

Integers = npt.NDArray[np.int64]

# By name, so that kinds sort as (virtual stage, instruction) do.
INSTRUCTIONS = tuple(sorted(Instruction))
NUMBERS = {instruction: number for number, instruction in enumerate(INSTRUCTIONS)}
# A backward and its first part are the same to whoever waits for the gradient: one slot, so never both.
SLOTS = {**NUMBERS, Instruction.BACKWARD_INPUT: NUMBERS[Instruction.BACKWARD]}
GRADIENT = SLOTS[Instruction.BACKWARD]
_SLOT_OF_NUMBER = np.array([SLOTS[each] for each in INSTRUCTIONS], dtype=np.int64)


@dataclass(frozen=True)
class Nodes:
    """The steps of all orders, rank by rank; a node is a step's index among them.

    Attributes:
        rank: of each node.
        position: in its rank's order.
        instruction: index into `INSTRUCTIONS`.
        microbatch: of each node.
        chunk: of each node.
        virtual: virtual stage of each node.
        places: by virtual stage, its rank and chunk.
    """

    rank: Integers
    position: Integers
    instruction: Integers
    microbatch: Integers
    chunk: Integers
    virtual: Integers
    places: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        self._check_once()

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.rank)

    @property
    def virtual_stages(self) -> int:
        """Parts that the model is cut into."""
        return len(self.places)

    @property
    def slot(self) -> Integers:
        """Of each node, its instruction's slot."""
        found: Integers = _SLOT_OF_NUMBER[self.instruction]
        return found

    def find(self, virtual: Integers, slot: int, microbatch: Integers) -> Integers:
        """Return the nodes that run a slot's instruction; -1 where none does."""
        if self.count == 0 or len(virtual) == 0:
            return np.full(len(virtual), -1, dtype=np.int64)
        keys = self._keys(self.virtual, self.slot, self.microbatch)
        order = np.argsort(keys, kind="stable")
        wanted = self._keys(virtual, np.full(len(virtual), slot), microbatch)
        places = np.minimum(np.searchsorted(keys[order], wanted), self.count - 1)
        found: Integers = np.where(keys[order][places] == wanted, order[places], -1)
        return found

    def name(self, node: int) -> str:
        """Return a node's name for a person: its stage and entry, and what it runs."""
        return f"stage {self.rank[node]} entry {self.position[node]} ({self._what(node)})"

    def missing(self, node: int, virtual: int, slot: int) -> str:
        """Return the sentence on a node that waits for what never runs."""
        if slot == GRADIENT:
            split = INSTRUCTIONS[self.instruction[node]] is not Instruction.BACKWARD
            instruction = Instruction.BACKWARD_INPUT if split else Instruction.BACKWARD
        else:
            instruction = INSTRUCTIONS[slot]
        rank, chunk = self.places[virtual]
        return (
            f"{self.name(node)} waits for {instruction.value} of microbatch {self.microbatch[node]} on stage {rank}"
            f"{self._chunk(chunk)}, which never runs"
        )

    def _what(self, node: int) -> str:
        instruction = INSTRUCTIONS[self.instruction[node]].value
        return f"{instruction} of microbatch {self.microbatch[node]}{self._chunk(int(self.chunk[node]))}"

    def _chunk(self, chunk: int) -> str:
        return f", chunk {chunk}" if any(each for _, each in self.places) else ""

    def _keys(self, virtual: Integers, slot: Integers, microbatch: Integers) -> Integers:
        most = int(self.microbatch.max()) + 1
        found: Integers = (virtual * len(INSTRUCTIONS) + slot) * most + microbatch
        return found

    def _check_once(self) -> None:
        if self.count == 0:
            return
        # A transfer in an order has no partner that looks for it, and there are up to four for a microbatch.
        checked = np.flatnonzero(self.instruction != NUMBERS[Instruction.P2P])
        keys = self._keys(self.virtual, self.slot, self.microbatch)
        order = checked[np.argsort(keys[checked], kind="stable")]
        again = np.flatnonzero(np.diff(keys[order]) == 0)
        if len(again):
            place = again[np.argmin(order[again + 1])]
            first, second = int(order[place]), int(order[place + 1])
            raise ValueError(
                f"stage {self.rank[second]} runs {self._what(second)} twice: entries {self.position[first]} "
                f"and {self.position[second]}"
            )


def flatten(orders: tuple[Order, ...], pipeline: Pipeline | None = None) -> Nodes:
    """Return the steps of all orders as arrays.

    Args:
        orders: of each rank.
        pipeline: says which virtual stage a chunk is; by default chunks are dealt out in turn.

    Raises:
        ValueError: something runs twice.
    """
    lengths = [len(order) for order in orders]
    count = sum(lengths)
    rank = np.repeat(np.arange(len(orders)), lengths)
    starts = np.cumsum([0, *lengths])[:-1]
    instruction, microbatch, chunk = (
        np.fromiter(values, dtype=np.int64, count=count)
        for values in (
            (NUMBERS[step.instruction] for order in orders for step in order),
            (step.microbatch for order in orders for step in order),
            (step.chunk for order in orders for step in order),
        )
    )
    chunks = pipeline.chunks if pipeline else 1 + int(chunk.max(initial=0))
    table = np.array(
        [
            [pipeline.virtual_stage(each, part) if pipeline else part * len(orders) + each for part in range(chunks)]
            for each in range(len(orders))
        ],
        dtype=np.int64,
    ).reshape(len(orders), chunks)
    places = {int(table[each, part]): (each, part) for each in range(len(orders)) for part in range(chunks)}
    return Nodes(
        rank=rank,
        position=np.arange(count) - np.repeat(starts, lengths),
        instruction=instruction,
        microbatch=microbatch,
        chunk=chunk,
        virtual=table[rank, chunk],
        places=tuple(places[virtual] for virtual in range(len(orders) * chunks)),
    )
