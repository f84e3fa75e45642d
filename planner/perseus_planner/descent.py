"""The compiled loop of the sweep: a parametric flow that keeps what it knows from one breakpoint to the next.

The state is a flow that is cheapest for the present T, with potentials (event times) that prove it. Two trees over
tight residual arcs are kept, as in the max-flow algorithm of Boykov and Kolmogorov (2004): one of events that the
source reaches, one of events that reach the sink. Where they touch, flow is pushed along the path through both, and
only what hung behind a saturated arc looks for a new parent. When nothing is tight between them, T falls: all events
of the source's tree move together, so every arc across the cut loses slack at the same rate. A heap keyed by slack
plus the movement so far at insertion therefore stays valid without updates, and an event's potential is kept relative
to the movement while it belongs to the tree.

A traversal is an arc with a direction: 2 x arc along it, 2 x arc + 1 against it (which takes flow back). All numbers
are integers. Nothing here knows of stages, clocks or units.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]
# More than any sum of capacities: an arc of this capacity never saturates.
UNBOUNDED = np.int64(2**62)

_FREE, _SOURCE_TREE, _SINK_TREE = 0, 1, 2
_ROOT, _ORPHAN = -1, -2


@njit(cache=True, inline="always")
def _end(traversal: int, tails: Integers, heads: Integers) -> int:  # pragma: no cover
    arc = traversal >> 1
    end: int = tails[arc] if traversal & 1 else heads[arc]
    return end


@njit(cache=True, inline="always")
def _slack(
    traversal: int, tails: Integers, heads: Integers, long: Integers, short: Integers, potentials: Integers,
    tree: Bytes, moved: int,
) -> int:  # fmt: skip  # pragma: no cover
    """Return how far a traversal is from being tight."""
    arc = traversal >> 1
    tail, head = tails[arc], heads[arc]
    span = potentials[head] - potentials[tail]
    if tree[head] == _SOURCE_TREE:
        span += moved
    if tree[tail] == _SOURCE_TREE:
        span -= moved
    # Along the arc at the length of its next unit of flow, against it at that of its last one.
    slack: int = long[arc] - span if traversal & 1 else span - short[arc]
    return slack


@njit(cache=True)
def _heap_push(keys: Integers, items: Integers, size: int, key: int, item: int) -> int:  # pragma: no cover
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if keys[parent] <= key:
            break
        keys[place], items[place] = keys[parent], items[parent]
        place = parent
    keys[place], items[place] = key, item
    return size + 1


@njit(cache=True)
def _heap_pop(keys: Integers, items: Integers, size: int) -> int:  # pragma: no cover
    """Remove the first entry, which the caller has read; return the new size."""
    size -= 1
    key, item = keys[size], items[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[place], items[place] = keys[child], items[child]
        place = child
    keys[place], items[place] = key, item
    return size


@njit(cache=True)
def _rooted(
    node: int, parent: Integers, tails: Integers, heads: Integers, known: Integers, mark: int, towards_sink: bool
) -> bool:  # pragma: no cover
    """Whether a node hangs on its tree's root and not on an orphan; remember all those that do."""
    at = node
    while known[at] != mark:
        step = parent[at]
        if step == _ROOT:
            break
        if step == _ORPHAN:
            return False
        at = _end(step, tails, heads) if towards_sink else _end(step ^ 1, tails, heads)
    at = node
    while known[at] != mark:
        known[at] = mark
        step = parent[at]
        if step == _ROOT:
            break
        at = _end(step, tails, heads) if towards_sink else _end(step ^ 1, tails, heads)
    return True


@njit(cache=True, nogil=True)
def descend(
    tails: Integers, heads: Integers, out_start: Integers, outs: Integers, activities: int, hull_first: Integers,
    hull_end: Integers, lengths: Integers, cumulative: Integers, potentials: Integers, targets: Integers,
) -> tuple[Integers, Integers, Integers, Integers, int]:  # fmt: skip  # pragma: no cover
    """Sweep T down to the last target.

    Args:
        tails: of each arc; activities come first.
        heads: of each arc.
        out_start: where each node's traversals begin in `outs` (one entry more than nodes).
        outs: traversals that leave a node.
        activities: how many arcs have a hull; the others have length 0 and no capacity.
        hull_first: of each activity, its first corner (the longest) in `lengths`.
        hull_end: of each activity, one past its last corner.
        lengths: of the hulls' corners.
        cumulative: flow up to which an activity has at most that length.
        potentials: event times at the longest T, changed in place; the last two nodes are source and sink.
        targets: falling times at which events and flows are recorded.

    Returns:
        Times of the breakpoints (falling), the price of time between each and the next, event times at the targets,
        flows of the activities at the targets, and the number of augmentations.
    """
    nodes = len(potentials)
    arcs = len(tails)
    source, sink = nodes - 2, nodes - 1
    flow = np.zeros(arcs, dtype=np.int64)
    corner = np.zeros(arcs, dtype=np.int64)
    short = np.zeros(arcs, dtype=np.int64)
    long = np.zeros(arcs, dtype=np.int64)
    for arc in range(activities):
        corner[arc] = hull_first[arc]
        short[arc] = long[arc] = lengths[hull_first[arc]]
    tree = np.zeros(nodes, dtype=np.int8)
    parent = np.full(nodes, _ROOT, dtype=np.int64)
    known = np.zeros(nodes, dtype=np.int64)
    mark = 0
    queue = np.empty(nodes, dtype=np.int64)
    queued = np.zeros(nodes, dtype=np.bool_)
    first = waiting = 0
    orphans = np.empty(nodes, dtype=np.int64)
    keys, items = np.empty(4 * arcs + 16, dtype=np.int64), np.empty(4 * arcs + 16, dtype=np.int64)
    size = 0
    moved = np.int64(0)
    beginning = potentials[sink] - potentials[source]
    times = [beginning]
    prices = [np.int64(0)]
    prices.clear()
    events = np.zeros((len(targets), nodes), dtype=np.int64)
    flows = np.zeros((len(targets), activities), dtype=np.int64)
    price = np.int64(0)
    augmentations = 0
    target = 0
    tree[source], tree[sink] = _SOURCE_TREE, _SINK_TREE
    for root in (source, sink):
        queue[waiting] = root
        waiting += 1
        queued[root] = True
    while target < len(targets) and targets[target] >= beginning:
        events[target] = potentials - potentials[source]
        target += 1
    fresh = np.ones(nodes, dtype=np.bool_)  # joined the source's tree, its slack arcs not yet in the heap
    while target < len(targets):
        contact = -1
        # Grow both trees over tight arcs until they touch.
        while waiting > 0 and contact < 0:
            node = queue[first]
            mine = tree[node]
            if mine == _SOURCE_TREE:
                if fresh[node]:
                    fresh[node] = False
                    if size + out_start[node + 1] - out_start[node] > len(keys):
                        size = _compact(keys, items, size, tails, heads, tree)
                        if 2 * size > len(keys):
                            keys = np.concatenate((keys, np.empty_like(keys)))
                            items = np.concatenate((items, np.empty_like(items)))
                    for place in range(out_start[node], out_start[node + 1]):
                        step = outs[place]
                        if tree[_end(step, tails, heads)] == _SOURCE_TREE or (step & 1 and flow[step >> 1] == 0):
                            continue
                        slack = _slack(step, tails, heads, long, short, potentials, tree, moved)
                        if slack > 0:
                            size = _heap_push(keys, items, size, slack + moved, step)
                for place in range(out_start[node], out_start[node + 1]):
                    step = outs[place]
                    other = _end(step, tails, heads)
                    if tree[other] == _SOURCE_TREE or (step & 1 and flow[step >> 1] == 0):
                        continue
                    if _slack(step, tails, heads, long, short, potentials, tree, moved) > 0:
                        continue
                    if tree[other] == _SINK_TREE:
                        contact = step
                        break
                    tree[other] = _SOURCE_TREE
                    potentials[other] -= moved
                    parent[other] = step
                    fresh[other] = True
                    if not queued[other]:
                        queued[other] = True
                        queue[(first + waiting) % nodes] = other
                        waiting += 1
            elif mine == _SINK_TREE:
                for place in range(out_start[node], out_start[node + 1]):
                    step = outs[place] ^ 1
                    other = _end(outs[place], tails, heads)
                    if tree[other] == _SINK_TREE or (step & 1 and flow[step >> 1] == 0):
                        continue
                    if _slack(step, tails, heads, long, short, potentials, tree, moved) > 0:
                        continue
                    if tree[other] == _SOURCE_TREE:
                        contact = step
                        break
                    tree[other] = _SINK_TREE
                    parent[other] = step
                    if not queued[other]:
                        queued[other] = True
                        queue[(first + waiting) % nodes] = other
                        waiting += 1
            if contact < 0:
                queued[node] = False
                first = (first + 1) % nodes
                waiting -= 1
        if contact < 0:
            # Nothing is tight across the cut: T falls until something is.
            found = False
            while size > 0:
                step, key = items[0], keys[0]
                size = _heap_pop(keys, items, size)
                node = _end(step ^ 1, tails, heads)
                if tree[node] != _SOURCE_TREE or tree[_end(step, tails, heads)] == _SOURCE_TREE:
                    continue
                if step & 1 and flow[step >> 1] == 0:
                    continue
                slack = _slack(step, tails, heads, long, short, potentials, tree, moved)
                if slack + moved > key:
                    size = _heap_push(keys, items, size, slack + moved, step)
                    continue
                found = True
                now = beginning - moved
                while target < len(targets) and targets[target] > now - slack:
                    at = beginning - targets[target]
                    for each in range(nodes):
                        events[target, each] = potentials[each] - at
                        if tree[each] == _SOURCE_TREE:
                            events[target, each] += at
                    flows[target] = flow[:activities]
                    target += 1
                moved += slack
                if not queued[node]:
                    queued[node] = True
                    queue[(first + waiting) % nodes] = node
                    waiting += 1
                break
            if not found:
                break
            continue
        # The bottleneck of the path through both trees.
        room = UNBOUNDED
        for side in range(2):
            step = contact
            while step >= 0:
                arc = step >> 1
                if arc < activities or step & 1:
                    if step & 1:
                        floor = np.int64(0)
                        if arc < activities:
                            last = corner[arc]
                            if last > hull_first[arc] and cumulative[last - 1] == flow[arc]:
                                last -= 1
                            if last > hull_first[arc]:
                                floor = cumulative[last - 1]
                        room = min(room, flow[arc] - floor)
                    elif cumulative[corner[arc]] != UNBOUNDED:
                        room = min(room, cumulative[corner[arc]] - flow[arc])
                step = parent[_end(step ^ 1, tails, heads)] if side == 0 else parent[_end(step, tails, heads)]
        if room == UNBOUNDED:
            break
        now = beginning - moved
        if now != times[-1]:
            times.append(now)
            prices.append(price)
        price += room
        augmentations += 1
        mark += 1
        lost = 0
        start = _end(contact ^ 1, tails, heads)
        for side in range(2):
            step = contact if side == 0 else parent[_end(contact, tails, heads)]
            while step >= 0:
                arc = step >> 1
                origin, other = _end(step ^ 1, tails, heads), _end(step, tails, heads)
                following = parent[origin] if side == 0 else parent[other]
                flow[arc] += -room if step & 1 else room
                if arc < activities:
                    at = corner[arc]
                    while cumulative[at] <= flow[arc] and at + 1 < hull_end[arc]:
                        at += 1
                    while at > hull_first[arc] and cumulative[at - 1] > flow[arc]:
                        at -= 1
                    corner[arc] = at
                    short[arc] = lengths[at]
                    long[arc] = short[arc]
                    if at > hull_first[arc] and cumulative[at - 1] == flow[arc]:
                        long[arc] = lengths[at - 1]
                saturated = (step & 1 and flow[arc] == 0) or _slack(
                    step, tails, heads, long, short, potentials, tree, moved
                ) > 0
                if saturated:
                    if step == contact:
                        if not (step & 1 and flow[arc] == 0):
                            slack = _slack(step, tails, heads, long, short, potentials, tree, moved)
                            if size == len(keys):
                                size = _compact(keys, items, size, tails, heads, tree)
                                if 2 * size > len(keys):
                                    keys = np.concatenate((keys, np.empty_like(keys)))
                                    items = np.concatenate((items, np.empty_like(items)))
                            size = _heap_push(keys, items, size, slack + moved, step)
                    else:
                        orphan = other if side == 0 else origin
                        parent[orphan] = _ORPHAN
                        orphans[lost] = orphan
                        lost += 1
                step = following
        if not queued[start]:
            queued[start] = True
            queue[(first + waiting) % nodes] = start
            waiting += 1
        # Orphans look for a new parent in their tree, or fall out of it and make orphans of their children.
        done = 0
        while done < lost:
            node = orphans[done]
            done += 1
            mine = tree[node]
            towards_sink = mine == _SINK_TREE
            adopted = False
            for place in range(out_start[node], out_start[node + 1]):
                step = outs[place] if towards_sink else outs[place] ^ 1
                other = _end(outs[place], tails, heads)
                if tree[other] != mine or (step & 1 and flow[step >> 1] == 0):
                    continue
                if _slack(step, tails, heads, long, short, potentials, tree, moved) > 0:
                    continue
                if _rooted(other, parent, tails, heads, known, mark, towards_sink):
                    parent[node] = step
                    known[node] = mark
                    adopted = True
                    break
            if adopted:
                continue
            for place in range(out_start[node], out_start[node + 1]):
                leaving = outs[place]
                other = _end(leaving, tails, heads)
                if tree[other] == _FREE:
                    continue
                child = leaving if mine == _SOURCE_TREE else leaving ^ 1
                if tree[other] == mine and parent[other] == child:
                    parent[other] = _ORPHAN
                    orphans[lost % nodes] = other
                    lost += 1
            if mine == _SOURCE_TREE:
                potentials[node] += moved
            tree[node] = _FREE
            for place in range(out_start[node], out_start[node + 1]):
                leaving = outs[place]
                other = _end(leaving, tails, heads)
                if tree[other] == _FREE:
                    continue
                # A neighbour that may claim the node: from the source's tree into it, or out of it to the sink's.
                step = leaving ^ 1 if tree[other] == _SOURCE_TREE else leaving
                if step & 1 and flow[step >> 1] == 0:
                    continue
                slack = _slack(step, tails, heads, long, short, potentials, tree, moved)
                if slack == 0:
                    if not queued[other]:
                        queued[other] = True
                        queue[(first + waiting) % nodes] = other
                        waiting += 1
                elif tree[other] == _SOURCE_TREE and mine == _SOURCE_TREE:
                    if size == len(keys):
                        size = _compact(keys, items, size, tails, heads, tree)
                        if 2 * size > len(keys):
                            keys = np.concatenate((keys, np.empty_like(keys)))
                            items = np.concatenate((items, np.empty_like(items)))
                    size = _heap_push(keys, items, size, slack + moved, step)
    now = beginning - moved
    if now != times[-1]:
        times.append(now)
        prices.append(price)
    # Targets below the least time that the relaxation has: its fastest events stand for them.
    while target < len(targets):
        for each in range(nodes):
            events[target, each] = potentials[each] - moved
            if tree[each] == _SOURCE_TREE:
                events[target, each] += moved
        flows[target] = flow[:activities]
        target += 1
    return np.array(times), np.array(prices), events, flows, augmentations


@njit(cache=True)
def _compact(
    keys: Integers, items: Integers, size: int, tails: Integers, heads: Integers, tree: Bytes
) -> int:  # pragma: no cover
    """Drop entries that no longer cross the cut; return the heap's new size."""
    kept = 0
    for place in range(size):
        step = items[place]
        if tree[_end(step ^ 1, tails, heads)] == _SOURCE_TREE and tree[_end(step, tails, heads)] != _SOURCE_TREE:
            key = keys[place]
            kept = _heap_push(keys, items, kept, key, step)
    return kept
