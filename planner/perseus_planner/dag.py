"""The pipeline's directed acyclic graph, as arrays for the compiled loops. No times, no energies.

What waits for what is a matter of virtual stages (parts of the model); what takes turns is a matter of ranks (GPUs).
Both are known here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from perseus_api.instructions import Instruction

from perseus_planner.nodes import GRADIENT, INSTRUCTIONS, NUMBERS, SLOTS, Nodes, flatten
from perseus_planner.pipeline import Order, Pipeline
from perseus_planner.waiting import topological

Integers = npt.NDArray[np.int64]
_NO_STAGE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Dag:
    """The pipeline's directed acyclic graph; nodes are instructions, numbered in a topological order.

    Attributes:
        stage: rank (GPU) of each node.
        position: of each node in its rank's order; -1 for what stands in no order.
        keys: kinds of nodes, (virtual stage, instruction).
        kind: of each node, an index into `keys`.
        before_start: where each node's predecessors begin in `before` (compressed rows, one entry more than nodes).
        before: predecessors.
        after_start: the same for successors.
        after: successors.
        kind_rank: rank of each kind; empty where each virtual stage is the rank of the same number.
        kind_beside: whether a kind runs beside the orders (`p2p` on edges); empty where none does.
    """

    stage: Integers
    position: Integers
    keys: tuple[tuple[int, Instruction], ...]
    kind: Integers
    before_start: Integers
    before: Integers
    after_start: Integers
    after: Integers
    kind_rank: tuple[int, ...] = ()
    kind_beside: tuple[bool, ...] = ()

    @property
    def nodes(self) -> int:
        """Number of instructions."""
        return len(self.kind)


def build_dag(orders: tuple[Order, ...], pipeline: Pipeline | None = None, p2p: Collection[int] = _NO_STAGE) -> Dag:
    """Return the graph of a pipeline's orders.

    A step waits for the one before it on its rank, and beyond that, for the same microbatch:

    - a forward for the forward of the virtual stage before;
    - a backward (or its first part, `backward_input`) for that of the virtual stage after, on the last virtual stage
      for its own forward, and for its recomputation where there is one;
    - a `backward_weight` for its `backward_input`;
    - a `recompute` for its forward.

    Fixed instructions that stand in an order wait for the step before them only. A transfer (`p2p`) that stands in no
    order is a node on each edge that leaves its virtual stage for another rank: it delays who waits for it, but its
    rank computes meanwhile. So it has no position, and its energy comes on top of what its rank draws anyway (see
    `costs`).

    Args:
        orders: of each rank.
        pipeline: says which virtual stage a chunk is; by default chunks are dealt out in turn.
        p2p: virtual stages with a transfer on their edges. Those whose order names `p2p` have it there instead.

    Raises:
        ValueError: an order waits for itself, or for something that never runs, or runs something twice; the text
            names stages, and entries counted from 0.
    """
    nodes = flatten(orders, pipeline)
    ranks = np.diff(nodes.rank, prepend=-1) != 0  # where a rank's order begins
    later = np.flatnonzero(~ranks)
    source, target, sends = _waits(nodes)
    named = set(nodes.virtual[nodes.instruction == NUMBERS[Instruction.P2P]].tolist())
    transferring = np.array(sorted(set(p2p) - named), dtype=np.int64)
    carried = sends & (nodes.rank[source] != nodes.rank[target]) & np.isin(nodes.virtual[source], transferring)
    transfers = nodes.count + np.arange(int(carried.sum()))
    tails = np.concatenate([later - 1, source[~carried], source[carried], transfers])
    heads = np.concatenate([later, target[~carried], transfers, target[carried]])
    rank = np.concatenate([nodes.rank, nodes.rank[source[carried]]])
    position = np.concatenate([nodes.position, np.full(len(transfers), -1)])
    kinds = np.concatenate([nodes.virtual, nodes.virtual[source[carried]]]) * len(INSTRUCTIONS) + np.concatenate(
        [nodes.instruction, np.full(len(transfers), NUMBERS[Instruction.P2P])]
    )
    old = topological(nodes, len(rank), tails, heads)
    new = np.empty_like(old)
    new[old] = np.arange(len(old))
    tails, heads = new[tails], new[heads]
    present, first, kind = np.unique(kinds, return_index=True, return_inverse=True)
    by_head = np.argsort(heads, kind="stable")
    by_tail = np.lexsort((heads, tails))
    return Dag(
        stage=rank[old],
        position=position[old],
        keys=tuple((int(each) // len(INSTRUCTIONS), INSTRUCTIONS[each % len(INSTRUCTIONS)]) for each in present),
        kind=kind[old].astype(np.int64),
        before_start=_starts(heads, len(rank)),
        before=tails[by_head],
        after_start=_starts(tails, len(rank)),
        after=heads[by_tail],
        kind_rank=tuple(rank[first].tolist()),
        kind_beside=tuple((position[first] < 0).tolist()),
    )


def _waits(nodes: Nodes) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """What waits for what across orders: (waited for, waiting, whether data go from one virtual stage to another)."""
    slot, virtual = nodes.slot, nodes.virtual
    forward, gradient = SLOTS[Instruction.FORWARD], GRADIENT
    recompute, weight = SLOTS[Instruction.RECOMPUTE], SLOTS[Instruction.BACKWARD_WEIGHT]
    last = nodes.virtual_stages - 1
    # Who waits, on which virtual stage, for which slot, whether it must exist, whether it sends data.
    rules = (
        (np.flatnonzero((slot == forward) & (virtual > 0)), -1, forward, True, True),
        (np.flatnonzero((slot == gradient) & (virtual < last)), 1, gradient, True, True),
        (np.flatnonzero((slot == gradient) & (virtual == last)), 0, forward, True, False),
        (np.flatnonzero(slot == gradient), 0, recompute, False, False),
        (np.flatnonzero(slot == weight), 0, gradient, True, False),
        (np.flatnonzero(slot == recompute), 0, forward, True, False),
    )
    sources, targets, sends = [], [], []
    lost: list[tuple[int, int, int]] = []  # node, virtual stage and slot that it misses
    for waiting, step, wanted, must, data in rules:
        found = nodes.find(virtual[waiting] + step, wanted, nodes.microbatch[waiting])
        if wanted == gradient and step == 0:  # The weights' gradient follows the input's, not a whole backward.
            whole = (found >= 0) & (nodes.instruction[found] != NUMBERS[Instruction.BACKWARD_INPUT])
            found = np.where(whole, -1, found)
        present = found >= 0
        if must and not present.all():
            node = int(waiting[~present][0])
            lost.append((node, int(virtual[node]) + step, wanted))
        # What only follows its predecessor on its own rank has that edge already.
        apart = present & ~((found == waiting - 1) & (nodes.rank[found] == nodes.rank[waiting]))
        sources.append(found[apart])
        targets.append(waiting[apart])
        sends.append(np.full(int(apart.sum()), data))
    if lost:
        raise ValueError(nodes.missing(*min(lost)))
    return np.concatenate(sources), np.concatenate(targets), np.concatenate(sends)


def _starts(ends: Integers, nodes: int) -> Integers:
    starts = np.zeros(nodes + 1, dtype=np.int64)
    starts[1:] = np.cumsum(np.bincount(ends, minlength=nodes))
    return starts
