"""The pipeline's directed acyclic graph, as arrays for the compiled loops. No times, no energies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from perseus_api.instructions import Instruction

from perseus_planner.pipeline import Order

_FORWARD, _BACKWARD = Instruction.FORWARD, Instruction.BACKWARD


@dataclass(frozen=True)
class Dag:
    """The pipeline's directed acyclic graph; nodes are instructions, numbered in a topological order.

    Attributes:
        stage: of each node.
        position: of each node in its stage's order.
        keys: kinds of nodes, (stage, instruction).
        kind: of each node, an index into `keys`.
        before_start: where each node's predecessors begin in `before` (compressed rows, one entry more than nodes).
        before: predecessors.
        after_start: the same for successors.
        after: successors.
    """

    stage: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    keys: tuple[tuple[int, Instruction], ...]
    kind: npt.NDArray[np.int64]
    before_start: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    after_start: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]

    @property
    def nodes(self) -> int:
        """Number of instructions."""
        return len(self.kind)


def build_dag(orders: tuple[Order, ...]) -> Dag:
    """Return the graph of a pipeline's orders.

    An instruction waits for the one before it on its stage; a forward for the same microbatch's forward on the stage
    before; a backward for the same microbatch's backward on the stage after, and on the last stage for its own
    forward.

    Raises:
        ValueError: an order waits for itself, or for something that never runs.
    """
    last = len(orders) - 1
    numbers: dict[tuple[int, Instruction, int], int] = {}
    for stage, order in enumerate(orders):
        for instruction, microbatch in order:
            if (stage, instruction, microbatch) in numbers:
                raise ValueError(f"stage {stage} runs {instruction.value} of microbatch {microbatch} twice")
            numbers[stage, instruction, microbatch] = len(numbers)
    waits: list[list[int]] = []
    places: list[tuple[int, int, Instruction]] = []
    for stage, order in enumerate(orders):
        for position, (instruction, microbatch) in enumerate(order):
            found = [len(waits) - 1] if position else []
            needed = None
            if instruction is _FORWARD and stage > 0:
                needed = (stage - 1, _FORWARD, microbatch)
            elif instruction is _BACKWARD:
                needed = (stage + 1, _BACKWARD, microbatch) if stage < last else (stage, _FORWARD, microbatch)
            if needed is not None:
                if needed not in numbers:
                    raise ValueError(
                        f"stage {stage}: {instruction.value} of microbatch {microbatch} waits for {needed[1].value} "
                        f"on stage {needed[0]}, which never runs"
                    )
                if numbers[needed] not in found:
                    found.append(numbers[needed])
            waits.append(found)
            places.append((stage, position, instruction))
    topological = _topological(waits)
    rank = {old: new for new, old in enumerate(topological)}
    keys = tuple(sorted({(stage, instruction) for stage, _, instruction in places}))
    key_index = {key: index for index, key in enumerate(keys)}
    before = [[rank[each] for each in waits[old]] for old in topological]
    after: list[list[int]] = [[] for _ in before]
    for node, predecessors in enumerate(before):
        for each in predecessors:
            after[each].append(node)
    before_start, before_flat = _rows(before)
    after_start, after_flat = _rows(after)
    return Dag(
        stage=np.array([places[old][0] for old in topological], dtype=np.int64),
        position=np.array([places[old][1] for old in topological], dtype=np.int64),
        keys=keys,
        kind=np.array([key_index[places[old][0], places[old][2]] for old in topological], dtype=np.int64),
        before_start=before_start,
        before=before_flat,
        after_start=after_start,
        after=after_flat,
    )


def _topological(waits: list[list[int]]) -> list[int]:
    missing = [len(each) for each in waits]
    followers: list[list[int]] = [[] for _ in waits]
    for node, predecessors in enumerate(waits):
        for each in predecessors:
            followers[each].append(node)
    ready = [node for node, count in enumerate(missing) if count == 0]
    done = 0
    while done < len(ready):
        for each in followers[ready[done]]:
            missing[each] -= 1
            if missing[each] == 0:
                ready.append(each)
        done += 1
    if len(ready) != len(waits):
        raise ValueError("the orders of the stages wait for each other: no iteration could ever end")
    return ready


def _rows(lists: list[list[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    starts = np.zeros(len(lists) + 1, dtype=np.int64)
    starts[1:] = np.cumsum([len(each) for each in lists])
    return starts, np.array([each for row in lists for each in row], dtype=np.int64)
