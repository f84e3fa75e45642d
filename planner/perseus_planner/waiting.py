"""An order in which nothing comes before what it waits for; or, where there is none, who waits for whom."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from perseus_planner.nodes import Nodes

Integers = npt.NDArray[np.int64]
_MOST_NAMED = 8


def topological(nodes: Nodes, count: int, tails: Integers, heads: Integers) -> Integers:
    """Return all nodes in a topological order (Kahn's algorithm, first come first served).

    Args:
        nodes: the steps of the orders; nodes from their number on stand in no order.
        count: of all nodes.
        tails: of each edge, the node waited for.
        heads: of each edge, the node that waits.

    Raises:
        ValueError: nodes wait for each other; the text names the members of a shortest such circle.
    """
    start = np.zeros(count + 1, dtype=np.int64)
    start[1:] = np.cumsum(np.bincount(tails, minlength=count))
    followers = heads[np.lexsort((heads, tails))].tolist()
    begins = start.tolist()
    waiting = np.bincount(heads, minlength=count)
    ready = np.flatnonzero(waiting == 0).tolist()
    missing = waiting.tolist()
    for node in ready:  # It grows while it is read.
        for each in followers[begins[node] : begins[node + 1]]:
            missing[each] -= 1
            if missing[each] == 0:
                ready.append(each)
    if len(ready) != count:
        raise ValueError(_sentence(nodes, _circle(missing, tails, heads)))
    return np.array(ready, dtype=np.int64)


def _circle(missing: list[int], tails: Integers, heads: Integers) -> list[int]:
    """Nodes of which each waits for the next, and the last for the first."""
    stuck = np.array(missing) > 0
    inside = stuck[tails] & stuck[heads]
    causes: dict[int, list[int]] = {}
    for tail, head in zip(tails[inside].tolist(), heads[inside].tolist(), strict=True):
        causes.setdefault(head, []).append(tail)
    # Every stuck node waits for a stuck one: walking from cause to cause comes round.
    node, seen = int(np.flatnonzero(stuck)[0]), set[int]()
    while node not in seen:
        seen.add(node)
        node = causes[node][-1]
    # The shortest way from it back to itself.
    reached = {node: node}
    line = deque([node])
    while line:
        here = line.popleft()
        for each in causes[here]:
            if each == node:
                way = [here]
                while way[-1] != node:
                    way.append(reached[way[-1]])
                return way[::-1]
            if each not in reached:
                reached[each] = here
                line.append(each)
    raise AssertionError("a walk came round where there is no circle")


def _sentence(nodes: Nodes, circle: list[int]) -> str:
    named = [node for node in circle if node < nodes.count]
    # A run of entries of one stage says no more than its first and its last.
    told = [
        node
        for index, node in enumerate(named)
        if len(named) <= 2
        or not nodes.rank[named[index - 1]] == nodes.rank[node] == nodes.rank[named[(index + 1) % len(named)]]
    ]
    told = told or named
    words = [nodes.name(node) for node in (told[:_MOST_NAMED] if len(told) > _MOST_NAMED else [*told, told[0]])]
    tail = f", and so on through {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return f"the orders wait for each other: {words[0]} waits for {', which waits for '.join(words[1:])}{tail}"
