"""The compiled loop of the sweep: a parametric flow that keeps what it knows from one breakpoint to the next.

The state is a flow that is cheapest for the present T, with potentials (event times) that prove it. Two trees over
tight residual arcs are kept, as in the max-flow algorithm of Boykov and Kolmogorov (2004): one of events that the
source reaches, one of events that reach the sink. Where they touch, flow is pushed along the path through both, and
only what hung behind a saturated arc falls out of its tree. (Looking for a new parent for it first, as they do, is
wasted here: in pipelines few of them find one.) When nothing is tight between the trees, T falls: all
events of the source's tree move together, so every arc across the cut loses slack at the same rate. A heap keyed by
slack plus the movement so far at insertion therefore stays valid without updates, and an event's potential is kept
relative to the movement while it belongs to the tree. Arcs enter the heap only when T is about to fall, for events
that changed sides since: most arcs that cross in between never matter.

A traversal is an arc with a direction: 2 x arc along it, 2 x arc + 1 against it (which takes flow back). Its slack is
the potential of its end, less that of its origin, plus its weight: minus the shortest length along the arc, the
longest against it, `_NEVER` where no flow can be taken back. All numbers are integers. Nothing here knows of stages,
clocks or units.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from perseus_planner.loops import inner, loop

Integers = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]
# More than any sum of capacities: an arc of this capacity never saturates.
UNBOUNDED = np.int64(2**62)

_NEVER = np.int64(2**60)  # more than any slack
_FREE, _SOURCE_TREE, _SINK_TREE = 0, 1, 2
_ROOT, _ORPHAN = -1, -2
# Places in the array of counters that the loops share.
_FIRST, _WAITING, _MOVED, _CHANGED, _SIZE = range(5)


@inner
def _heap_push(keys: Integers, items: Indices, size: int, key: int, item: int) -> int:  # pragma: no cover
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if keys[parent] <= key:
            break
        keys[place], items[place] = keys[parent], items[parent]
        place = parent
    keys[place], items[place] = key, item
    return size + 1


@inner
def _heap_pop(keys: Integers, items: Indices, size: int) -> int:  # pragma: no cover
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


@inner
def _heap_compact(keys: Integers, items: Indices, size: int, ends: Indices, tree: Bytes) -> int:  # pragma: no cover
    """Drop entries that no longer cross the cut; return the heap's new size."""
    kept = 0
    for place in range(size):
        step = items[place]
        if tree[ends[step ^ 1]] == _SOURCE_TREE and tree[ends[step]] != _SOURCE_TREE:
            kept = _heap_push(keys, items, kept, keys[place], step)
    return kept


@inner
def _enqueue(node: int, queue: Indices, queued: Flags, counters: Integers) -> None:  # pragma: no cover
    if not queued[node]:
        queued[node] = True
        place = counters[_FIRST] + counters[_WAITING]
        queue[place if place < len(queue) else place - len(queue)] = node
        counters[_WAITING] += 1


@inner
def _grow(
    start: Indices, to: Indices, steps: Indices, weights: Integers, potentials: Integers, tree: Bytes, parent: Indices,
    queue: Indices, queued: Flags, changed: Indices, is_changed: Flags, counters: Integers,
) -> int:  # fmt: skip  # pragma: no cover
    """Grow both trees over tight arcs; return the traversal where they touch, -1 if they do not."""
    moved = counters[_MOVED]
    while counters[_WAITING] > 0:
        node = queue[counters[_FIRST]]
        if tree[node] == _SOURCE_TREE:
            here = potentials[node] + moved
            for place in range(start[node], start[node + 1]):
                other = to[place]
                side = tree[other]
                if side == _SOURCE_TREE or potentials[other] - here + weights[steps[place]] > 0:
                    continue
                if side == _SINK_TREE:
                    return int(steps[place])
                tree[other] = _SOURCE_TREE
                potentials[other] -= moved
                parent[other] = steps[place]
                if not is_changed[other]:
                    is_changed[other] = True
                    changed[counters[_CHANGED]] = other
                    counters[_CHANGED] += 1
                _enqueue(other, queue, queued, counters)
        elif tree[node] == _SINK_TREE:
            here = potentials[node]
            for place in range(start[node], start[node + 1]):
                other = to[place]
                side = tree[other]
                if side == _SINK_TREE:
                    continue
                step = steps[place] ^ 1
                there = potentials[other]
                if side == _SOURCE_TREE:
                    there += moved
                if here - there + weights[step] > 0:
                    continue
                if side == _SOURCE_TREE:
                    return int(step)
                tree[other] = _SINK_TREE
                parent[other] = step
                _enqueue(other, queue, queued, counters)
        queued[node] = False
        counters[_FIRST] += 1
        if counters[_FIRST] == len(queue):
            counters[_FIRST] = 0
        counters[_WAITING] -= 1
    return -1


@inner
def _drop(
    fallen: Indices, lost: int, start: Indices, to: Indices, steps: Indices, weights: Integers, potentials: Integers,
    tree: Bytes, parent: Indices, queue: Indices, queued: Flags, changed: Indices, is_changed: Flags,
    counters: Integers,
) -> None:  # fmt: skip  # pragma: no cover
    """Take what hangs behind saturated arcs out of its tree, then join what a tree still reaches directly."""
    moved = counters[_MOVED]
    done = 0
    while done < lost:
        node = fallen[done]
        done += 1
        mine = tree[node]
        for place in range(start[node], start[node + 1]):
            other = to[place]
            if tree[other] == mine:
                child = steps[place] if mine == _SOURCE_TREE else steps[place] ^ 1
                if parent[other] == child:
                    parent[other] = _ORPHAN
                    fallen[lost] = other
                    lost += 1
        tree[node] = _FREE
        if mine == _SOURCE_TREE:
            potentials[node] += moved
            if not is_changed[node]:
                is_changed[node] = True
                changed[counters[_CHANGED]] = node
                counters[_CHANGED] += 1
    for index in range(lost):
        node = fallen[index]
        here = potentials[node]
        for place in range(start[node], start[node + 1]):
            other = to[place]
            if tree[other] == _SINK_TREE:
                if potentials[other] - here + weights[steps[place]] > 0:
                    continue
                tree[node] = _SINK_TREE
                parent[node] = steps[place]
            elif tree[other] == _SOURCE_TREE:
                step = steps[place] ^ 1
                if here - potentials[other] - moved + weights[step] > 0:
                    continue
                tree[node] = _SOURCE_TREE
                potentials[node] -= moved
                parent[node] = step
                if not is_changed[node]:
                    is_changed[node] = True
                    changed[counters[_CHANGED]] = node
                    counters[_CHANGED] += 1
            else:
                continue
            _enqueue(node, queue, queued, counters)
            break


@inner
def _crossing(
    keys: Integers, items: Indices, start: Indices, to: Indices, steps: Indices, weights: Integers,
    potentials: Integers, tree: Bytes, changed: Indices, is_changed: Flags, counters: Integers,
) -> None:  # fmt: skip  # pragma: no cover
    """Put the arcs into the heap that cross the cut since events changed sides."""
    size = counters[_SIZE]
    for index in range(counters[_CHANGED]):
        node = changed[index]
        here = potentials[node]
        if tree[node] == _SOURCE_TREE:
            for place in range(start[node], start[node + 1]):
                if tree[to[place]] != _SOURCE_TREE:
                    key = potentials[to[place]] - here + weights[steps[place]]
                    if key < _NEVER // 2:
                        size = _heap_push(keys, items, size, key, steps[place])
        else:
            for place in range(start[node], start[node + 1]):
                other = to[place]
                if tree[other] == _SOURCE_TREE and not is_changed[other]:
                    key = here - potentials[other] + weights[steps[place] ^ 1]
                    if key < _NEVER // 2:
                        size = _heap_push(keys, items, size, key, steps[place] ^ 1)
    for index in range(counters[_CHANGED]):
        is_changed[changed[index]] = False
    counters[_CHANGED] = 0
    counters[_SIZE] = size


@loop(
    "Tuple((i8[::1],i8[::1],i8[:,::1],i8[:,::1],i8))"
    "(i8[::1],i8[::1],i8[::1],i8[::1],i8,i8[::1],i8[::1],i8[::1],i8[::1],i8[::1],i8[::1])"
)
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
    nodes, arcs = len(potentials), len(tails)
    source, sink = nodes - 2, nodes - 1
    start, steps = out_start.astype(np.int32), outs.astype(np.int32)
    ends = np.empty(2 * arcs, dtype=np.int32)
    weights = np.zeros(2 * arcs, dtype=np.int64)
    flow = np.zeros(arcs, dtype=np.int64)
    most, least = np.full(arcs, UNBOUNDED), np.zeros(arcs, dtype=np.int64)  # flow at the present lengths
    corner = hull_first.copy()
    for arc in range(arcs):
        ends[2 * arc], ends[2 * arc + 1] = heads[arc], tails[arc]
        weights[2 * arc + 1] = _NEVER
        if arc < activities:
            weights[2 * arc] = -lengths[hull_first[arc]]
            most[arc] = cumulative[hull_first[arc]]
    to = ends[steps]
    tree = np.zeros(nodes, dtype=np.int8)
    parent = np.full(nodes, _ROOT, dtype=np.int32)
    queue, queued = np.empty(nodes, dtype=np.int32), np.zeros(nodes, dtype=np.bool_)
    changed, is_changed = np.empty(nodes, dtype=np.int32), np.zeros(nodes, dtype=np.bool_)
    fallen, path = np.empty(nodes, dtype=np.int32), np.empty(nodes + 1, dtype=np.int32)
    keys, items = np.empty(4 * arcs + 64, dtype=np.int64), np.empty(4 * arcs + 64, dtype=np.int32)
    counters = np.zeros(5, dtype=np.int64)
    beginning = potentials[sink] - potentials[source]
    times, prices = [beginning], [np.int64(0)]
    prices.clear()
    events = np.zeros((len(targets), nodes), dtype=np.int64)
    flows = np.zeros((len(targets), activities), dtype=np.int64)
    price = np.int64(0)
    augmentations = target = 0
    tree[source], tree[sink] = _SOURCE_TREE, _SINK_TREE
    changed[0], is_changed[source] = source, True
    counters[_CHANGED] = 1
    _enqueue(source, queue, queued, counters)
    _enqueue(sink, queue, queued, counters)
    while target < len(targets) and targets[target] >= beginning:
        events[target] = potentials - potentials[source]
        target += 1
    while target < len(targets):
        contact = _grow(
            start, to, steps, weights, potentials, tree, parent, queue, queued, changed, is_changed, counters
        )
        if contact < 0:
            # Nothing is tight across the cut: T falls until something is.
            if counters[_SIZE] + 2 * arcs > len(keys):
                counters[_SIZE] = _heap_compact(keys, items, counters[_SIZE], ends, tree)
                if counters[_SIZE] + 2 * arcs > len(keys):
                    keys, items = np.concatenate((keys, np.empty_like(keys))), np.concatenate((items, items))
            _crossing(keys, items, start, to, steps, weights, potentials, tree, changed, is_changed, counters)
            size, moved = counters[_SIZE], counters[_MOVED]
            found = -1
            slack = np.int64(0)
            while size > 0 and found < 0:
                step, key = items[0], keys[0]
                size = _heap_pop(keys, items, size)
                origin, end = ends[step ^ 1], ends[step]
                if tree[origin] != _SOURCE_TREE or tree[end] == _SOURCE_TREE:
                    continue
                true_key = potentials[end] - potentials[origin] + weights[step]
                if true_key == key:
                    found, slack = step, key - moved
                elif true_key < _NEVER // 2:
                    size = _heap_push(keys, items, size, true_key, step)
            counters[_SIZE] = size
            if found < 0:
                break
            while target < len(targets) and targets[target] > beginning - moved - slack:
                at = beginning - targets[target]
                for node in range(nodes):
                    events[target, node] = potentials[node] - (0 if tree[node] == _SOURCE_TREE else at)
                flows[target] = flow[:activities]
                target += 1
            counters[_MOVED] = moved + slack
            end = ends[found]
            if tree[end] == _FREE:
                tree[end] = _SOURCE_TREE
                potentials[end] -= counters[_MOVED]
                parent[end] = found
                is_changed[end] = True
                changed[0] = end
                counters[_CHANGED] = 1
                _enqueue(end, queue, queued, counters)
                continue
            contact = found
        # The path through both trees, the source's side first, and its bottleneck.
        count = 0
        step = contact
        while step >= 0:
            path[count] = step
            count += 1
            step = int(parent[ends[step ^ 1]])
        turn = count
        step = int(parent[ends[contact]])
        while step >= 0:
            path[count] = step
            count += 1
            step = int(parent[ends[step]])
        room = UNBOUNDED
        for index in range(count):
            arc = path[index] >> 1
            room = min(room, flow[arc] - least[arc] if path[index] & 1 else most[arc] - flow[arc])
        if room > UNBOUNDED // 2:
            break
        now = beginning - counters[_MOVED]
        if now != times[-1]:
            times.append(now)
            prices.append(price)
        price += room
        augmentations += 1
        lost = 0
        for index in range(count):
            step = int(path[index])
            arc = step >> 1
            before = weights[step]
            flow[arc] += -room if step & 1 else room
            if arc < activities:
                at = corner[arc]
                while cumulative[at] <= flow[arc] and at + 1 < hull_end[arc]:
                    at += 1
                while at > hull_first[arc] and cumulative[at - 1] > flow[arc]:
                    at -= 1
                corner[arc] = at
                long = lengths[at]
                most[arc] = cumulative[at] if at + 1 < hull_end[arc] else UNBOUNDED
                least[arc] = cumulative[at - 1] if at > hull_first[arc] else 0
                if at > hull_first[arc] and cumulative[at - 1] == flow[arc]:
                    long = lengths[at - 1]
                    least[arc] = cumulative[at - 2] if at - 1 > hull_first[arc] else 0
                weights[2 * arc] = -lengths[at]
                weights[2 * arc + 1] = long if flow[arc] > 0 else _NEVER
            else:
                weights[2 * arc + 1] = 0 if flow[arc] > 0 else _NEVER
            grown = weights[step] - before
            if grown == 0:
                continue
            if index > 0:
                orphan = ends[step] if index < turn else ends[step ^ 1]
                parent[orphan] = _ORPHAN
                fallen[lost] = orphan
                lost += 1
            elif weights[step] < _NEVER:
                if counters[_SIZE] == len(keys):
                    keys, items = np.concatenate((keys, np.empty_like(keys))), np.concatenate((items, items))
                counters[_SIZE] = _heap_push(keys, items, counters[_SIZE], grown + counters[_MOVED], step)
        _enqueue(ends[contact ^ 1], queue, queued, counters)
        _drop(
            fallen, lost, start, to, steps, weights, potentials, tree, parent, queue, queued, changed, is_changed,
            counters,
        )  # fmt: skip
    moved = counters[_MOVED]
    now = beginning - moved
    if now != times[-1]:
        times.append(now)
        prices.append(price)
    # Targets below the least time that the relaxation has: its fastest events stand for them.
    while target < len(targets):
        for node in range(nodes):
            events[target, node] = potentials[node] - (0 if tree[node] == _SOURCE_TREE else moved)
        flows[target] = flow[:activities]
        target += 1
    return np.array(times), np.array(prices), events, flows, augmentations
