"""The exact frontier of the relaxation: from T*, where everything runs at its cheapest, down to a given time.

Project time-cost trade-off with convex piecewise linear costs (Kelley 1961; Fulkerson 1961; Phillips and Dessouky
1977): its dual is a flow from the first event to the last, in which an activity carries the flow at the length of its
hull's corner. Potentials are event times; flow is the price of a second. Each step finds the longest residual path by
Dijkstra's algorithm on slacks, lowers T until it is tight, and augments along it. All comparisons are between
integers: no step is lost to rounding.

Compiled by numba (cached on disk); nothing here knows of stages or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from perseus_planner.costs import MICROWATTS, NANOSECONDS, UNBOUNDED, CostTable
from perseus_planner.dag import Dag

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sweep:
    """The relaxation's frontier.

    Attributes:
        nanoseconds: times of the breakpoints, falling from T*.
        cost_joules: cost (without the blocking power of the whole iteration) at each.
        target_nanoseconds: times at which events were recorded.
        events: at each target, the time of every node's begin and end in ns, shape (targets, 2 x nodes).
        flows: at each target, the price of each node's time in microwatts, shape (targets, nodes).
    """

    nanoseconds: Integers
    cost_joules: Numbers
    target_nanoseconds: Integers
    events: Integers
    flows: Integers

    def cost_at(self, nanoseconds: float) -> float:
        """Return the least cost in joules of any plan of the relaxation with at most this time."""
        return float(np.interp(nanoseconds, self.nanoseconds[::-1], self.cost_joules[::-1]))

    def prices_joules_per_nanosecond(self, index: int) -> Numbers:
        """Return the price of each node's time at a target: what shortening it by a nanosecond is worth."""
        prices: Numbers = self.flows[index] / (NANOSECONDS * MICROWATTS)
        return prices


def sweep(dag: Dag, costs: CostTable, target_nanoseconds: Integers) -> Sweep:
    """Sweep from T* down to the last target.

    Args:
        dag: the pipeline.
        costs: of its kinds of nodes.
        target_nanoseconds: falling times at which events are recorded; those above T* are recorded at T*.
    """
    start, lengths, cumulative = costs.hull_arrays()
    tails, heads = _arcs(dag)
    nodes = 2 * dag.nodes + 2
    out_start, out_arcs = _by_node(tails, nodes)
    in_start, in_arcs = _by_node(heads, nodes)
    cheapest = np.array([hull.lengths[0] for hull in costs.hulls], dtype=np.int64)[dag.kind]
    events = _longest(dag, cheapest)
    potentials = np.zeros(nodes, dtype=np.int64)
    potentials[0:-2:2], potentials[1:-2:2] = events - cheapest, events
    potentials[-1] = events.max()
    base_joules = float(np.array([hull.corner_joules[0] for hull in costs.hulls])[dag.kind].sum())
    times, prices, recorded, flows = _descend(
        tails, heads, out_start, out_arcs, in_start, in_arcs, dag.nodes, start[dag.kind], start[dag.kind + 1],
        lengths, cumulative, potentials, target_nanoseconds.astype(np.int64),
    )  # fmt: skip
    steps = -np.diff(times) * (prices / (NANOSECONDS * MICROWATTS))
    return Sweep(
        nanoseconds=times,
        cost_joules=base_joules + np.concatenate([[0.0], np.cumsum(steps)]),
        target_nanoseconds=target_nanoseconds,
        events=recorded[:, :-2],
        flows=flows,
    )


def longest_path(dag: Dag, nanoseconds: Integers) -> int:
    """Return the length of the longest path with the given duration of each node."""
    return int(_longest(dag, nanoseconds).max())


def _longest(dag: Dag, nanoseconds: Integers) -> Integers:
    ends: Integers = finish_times(dag.before_start, dag.before, nanoseconds)
    return ends


def _arcs(dag: Dag) -> tuple[Integers, Integers]:
    """Arcs by number: first one for each activity, then precedences, then from the source and to the sink."""
    count = dag.nodes
    numbers = np.arange(count)
    waiting = np.repeat(numbers, np.diff(dag.before_start))
    first = numbers[np.diff(dag.before_start) == 0]
    last = numbers[np.diff(dag.after_start) == 0]
    source, sink = 2 * count, 2 * count + 1
    tails = np.concatenate([2 * numbers, 2 * dag.before + 1, np.full(len(first), source), 2 * last + 1])
    heads = np.concatenate([2 * numbers + 1, 2 * waiting, 2 * first, np.full(len(last), sink)])
    return tails.astype(np.int64), heads.astype(np.int64)


def _by_node(ends: Integers, nodes: int) -> tuple[Integers, Integers]:
    start = np.zeros(nodes + 1, dtype=np.int64)
    start[1:] = np.cumsum(np.bincount(ends, minlength=nodes))
    return start, np.argsort(ends, kind="stable").astype(np.int64)


@njit(cache=True)
def finish_times(before_start: Integers, before: Integers, nanoseconds: Integers) -> Integers:  # pragma: no cover
    """Return when each node ends if everything begins as early as it can; nodes are in topological order."""
    ends = np.empty(len(nanoseconds), dtype=np.int64)
    for node in range(len(nanoseconds)):
        begin = np.int64(0)
        for place in range(before_start[node], before_start[node + 1]):
            begin = max(begin, ends[before[place]])
        ends[node] = begin + nanoseconds[node]
    return ends


@njit(cache=True)
def _push(heap: Integers, keys: Integers, places: Integers, size: int, node: int) -> int:  # pragma: no cover
    """Insert a node, or move it up after its key has fallen; return the heap's size."""
    place = places[node]
    if place < 0:
        place = size
        size += 1
    while place > 0:
        parent = (place - 1) // 2
        if keys[heap[parent]] <= keys[node]:
            break
        heap[place] = heap[parent]
        places[heap[place]] = place
        place = parent
    heap[place] = node
    places[node] = place
    return size


@njit(cache=True)
def _pop(heap: Integers, keys: Integers, places: Integers, size: int) -> int:  # pragma: no cover
    """Remove the node of the smallest key, which is heap[0] before the call; return the heap's new size."""
    size -= 1
    node = heap[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and keys[heap[child + 1]] < keys[heap[child]]:
            child += 1
        if keys[heap[child]] >= keys[node]:
            break
        heap[place] = heap[child]
        places[heap[place]] = place
        place = child
    heap[place] = node
    places[node] = place
    return size


@njit(cache=True)
def _descend(
    tails: Integers, heads: Integers, out_start: Integers, out_arcs: Integers, in_start: Integers, in_arcs: Integers,
    activities: int, hull_first: Integers, hull_end: Integers, lengths: Integers, cumulative: Integers,
    potentials: Integers, targets: Integers,
) -> tuple[Integers, Numbers, Integers, Integers]:  # fmt: skip  # pragma: no cover
    nodes = len(potentials)
    source, sink = nodes - 2, nodes - 1
    flow = np.zeros(len(tails), dtype=np.int64)
    # Where an activity's next and last units of flow run, as indices into the hull's corners.
    forward = hull_first.copy()
    backward = np.full(activities, -1, dtype=np.int64)
    distance = np.empty(nodes, dtype=np.int64)
    parent = np.empty(nodes, dtype=np.int64)
    places = np.empty(nodes, dtype=np.int64)
    settled = np.zeros(nodes, dtype=np.bool_)
    heap = np.empty(nodes, dtype=np.int64)
    touched = np.empty(nodes, dtype=np.int64)
    distance[:] = UNBOUNDED
    places[:] = -1
    times = [potentials[sink] - potentials[source]]
    prices = [np.float64(0.0)]
    prices.clear()
    recorded = np.zeros((len(targets), nodes), dtype=np.int64)
    flows = np.zeros((len(targets), activities), dtype=np.int64)
    price = np.int64(0)
    next_target = 0
    while next_target < len(targets) and targets[next_target] >= times[0]:
        recorded[next_target] = potentials - potentials[source]
        next_target += 1
    while next_target < len(targets):
        # Dijkstra on slacks, from the source to the sink.
        count = 1
        touched[0] = source
        distance[source] = 0
        parent[source] = -1
        size = _push(heap, distance, places, 0, source)
        while size > 0:
            node = heap[0]
            size = _pop(heap, distance, places, size)
            settled[node] = True
            if node == sink:
                break
            for place in range(out_start[node], out_start[node + 1]):
                arc = out_arcs[place]
                other = heads[arc]
                if settled[other]:
                    continue
                length = lengths[forward[arc]] if arc < activities else np.int64(0)
                reach = distance[node] + potentials[other] - potentials[node] - length
                if reach < distance[other]:
                    if distance[other] == UNBOUNDED:
                        touched[count] = other
                        count += 1
                    distance[other] = reach
                    parent[other] = arc
                    size = _push(heap, distance, places, size, other)
            for place in range(in_start[node], in_start[node + 1]):
                arc = in_arcs[place]
                other = tails[arc]
                if settled[other] or flow[arc] == 0:
                    continue
                length = lengths[backward[arc]] if arc < activities else np.int64(0)
                reach = distance[node] + potentials[other] - potentials[node] + length
                if reach < distance[other]:
                    if distance[other] == UNBOUNDED:
                        touched[count] = other
                        count += 1
                    distance[other] = reach
                    parent[other] = -2 - arc
                    size = _push(heap, distance, places, size, other)
        step = distance[sink]
        now = times[-1]
        while next_target < len(targets) and targets[next_target] > now - step:
            part = now - targets[next_target]
            recorded[next_target] = potentials
            for index in range(count):
                node = touched[index]
                if distance[node] < part:
                    recorded[next_target, node] += part - distance[node]
            recorded[next_target] -= recorded[next_target, source]
            flows[next_target] = flow[:activities]
            next_target += 1
        for index in range(count):
            node = touched[index]
            if distance[node] < step:
                potentials[node] += step - distance[node]
        if step > 0:
            times.append(now - step)
            prices.append(np.float64(price))
        # The bottleneck of the path, then the augmentation.
        room = UNBOUNDED
        node = sink
        while node != source:
            arc = parent[node]
            if arc >= 0:
                if arc < activities and cumulative[forward[arc]] != UNBOUNDED:
                    room = min(room, cumulative[forward[arc]] - flow[arc])
                node = tails[arc]
            else:
                arc = -2 - arc
                floor = np.int64(0)
                if arc < activities and backward[arc] > hull_first[arc]:
                    floor = cumulative[backward[arc] - 1]
                room = min(room, flow[arc] - floor)
                node = heads[arc]
        if room == UNBOUNDED:
            break
        node = sink
        while node != source:
            arc = parent[node]
            if arc >= 0:
                flow[arc] += room
                node = tails[arc]
            else:
                arc = -2 - arc
                flow[arc] -= room
                node = heads[arc]
            if arc < activities:
                while cumulative[forward[arc]] <= flow[arc] and forward[arc] + 1 < hull_end[arc]:
                    forward[arc] += 1
                while forward[arc] > hull_first[arc] and cumulative[forward[arc] - 1] > flow[arc]:
                    forward[arc] -= 1
                backward[arc] = forward[arc]
                if forward[arc] > hull_first[arc] and cumulative[forward[arc] - 1] == flow[arc]:
                    backward[arc] = forward[arc] - 1
        price += room
        for index in range(count):
            node = touched[index]
            distance[node] = UNBOUNDED
            settled[node] = False
            places[node] = -1
    # Targets below the least time that the relaxation has: its fastest events stand for them.
    while next_target < len(targets):
        recorded[next_target] = potentials - potentials[source]
        flows[next_target] = flow[:activities]
        next_target += 1
    return np.array(times), np.array(prices), recorded, flows
