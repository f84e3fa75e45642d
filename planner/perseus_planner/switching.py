"""Plans that change clocks less often: calls to the driver cost time and energy, and many a second disturb collectives.

A switch is a change of clock between one instruction of a rank and the next that has a clock, the first of the next
iteration included. For each rank, a shortest path over its clocks (Viterbi 1967) minimises the reduced costs that the
relaxation gives to options, plus a price for each switch; the price is raised until the rank keeps its bound. The
relaxation's prices are raised as well until the limit is kept at real times. The segments of equal clock found so are
then moved as a whole, split, and their borders moved to and fro, while that pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from perseus_planner.loops import inner, loop

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
_BISECTIONS = 30
_HASTES = 14
_HALVINGS = 6
MOST_HASTE = 64.0  # times the relaxation's prices: nearly every instruction at its fastest
_NODE_VISITS = 100_000_000  # of the local search, at most: a second or two


@dataclass(frozen=True)
class SwitchBound:
    """What clock switches cost, and how many there may be.

    Attributes:
        per_second: switches of one GPU in a second, at most; None: as many as pay.
        seconds: by which each switch delays the instruction after it.
        joules: that each switch costs one GPU.
    """

    per_second: float | None = None
    seconds: float = 0.0
    joules: float = 0.0

    def __post_init__(self) -> None:
        if self.per_second is not None and not 0 <= self.per_second <= 1e6:
            raise ValueError(f"switches a second must be from 0 to 1000000, not {self.per_second}")
        if not (0 <= self.seconds <= 10 and 0 <= self.joules <= 1e6):
            raise ValueError("a switch takes from 0 to 10 seconds and from 0 to 1000000 joules")


@dataclass(frozen=True)
class Lanes:
    """The ranks' instructions that have a clock, and what each clock makes of them.

    Attributes:
        start: where each rank's instructions begin in `nodes` (one entry more than ranks).
        nodes: numbers of the instructions in the graph, rank by rank in order of execution.
        durations: of each node at each clock, shape (nodes of the graph, clocks); 0: not measured.
        joules: cost of each node at each clock, the blocking power taken off.
    """

    start: Integers
    nodes: Integers
    durations: Integers
    joules: Numbers


def bounded(
    before_start: Integers,
    before: Integers,
    lanes: Lanes,
    fixed_durations: Integers,
    prices: Numbers,
    fastest: Integers,
    limit: int,
    allowed: int,
    dead: int,
    switch_joules: float,
) -> Integers:
    """Choose a clock for each node.

    Args:
        before_start: predecessors in the graph, compressed rows by node.
        before: the same.
        lanes: the ranks.
        fixed_durations: of each node that has no clock; 0 elsewhere.
        prices: of each node's time in the relaxation, in joules a unit of time.
        fastest: for each node the clock that the plan without any slowdown has; it must keep the limit.
        limit: longest path, in units of time.
        allowed: switches of a rank in an iteration, at most.
        dead: delay by a switch, in units of time.
        switch_joules: energy of a switch.

    Returns:
        For each node an index into the clocks; -1 where it has none.
    """
    ranks = [lanes.nodes[low:high] for low, high in pairwise(lanes.start) if high > low]
    previous = np.full(len(prices), -1, dtype=np.int64)
    for nodes in ranks:
        previous[nodes] = np.roll(nodes, 1)
    ends = np.empty(len(prices), dtype=np.int64)

    def tried(haste: float, most: int) -> tuple[Integers, bool]:
        clocks = np.full(len(prices), -1, dtype=np.int64)
        # Where the relaxation has time to spare it has no price; merged segments may use that time up.
        hasty = prices + haste * (prices + prices.mean())
        for nodes in ranks:
            clocks[nodes] = _lane(lanes, nodes, hasty, most, dead, switch_joules)
        time = switched_time(before_start, before, lanes.durations, previous, fixed_durations, clocks, dead, ends)
        return clocks, time <= limit

    best = np.full(len(prices), -1, dtype=np.int64)
    best[lanes.nodes] = fastest[lanes.nodes]
    best_at_first = best.copy()
    least = np.inf
    most = min(allowed, max((len(nodes) for nodes in ranks), default=0))
    # A switch's delay is not in the relaxation's prices: fewer switches than allowed can be better, and even to begin
    # with none and let segments be inserted (-1).
    for fewer in sorted({-1, *(most >> halvings for halvings in range(_HALVINGS))}, reverse=True):
        chosen, kept = tried(0.0, fewer) if fewer >= 0 else (best_at_first.copy(), True)
        if not kept:
            chosen = best_at_first.copy()
            low, high = 0.0, MOST_HASTE
            for _ in range(_HASTES):
                middle = (low + high) / 2 if low else high / 8
                clocks, kept = tried(middle, fewer)
                if kept:
                    chosen, high = clocks, middle
                else:
                    low = middle
        cost = move_segments(
            before_start, before, lanes.start, lanes.nodes, lanes.durations, lanes.joules, previous, fixed_durations,
            chosen, int(limit), int(dead), float(switch_joules), max(10, _NODE_VISITS // len(prices)),
            allowed,
        )  # fmt: skip
        if cost < least:
            best, least = chosen, cost
    return best


def count_switches(lanes: Lanes, clocks: Integers) -> Integers:
    """Return how often each rank changes its clock in an iteration, the way back to its first clock included."""
    counts = []
    for rank in range(len(lanes.start) - 1):
        mine = clocks[lanes.nodes[lanes.start[rank] : lanes.start[rank + 1]]]
        counts.append(int((mine != np.roll(mine, 1)).sum()))
    return np.array(counts, dtype=np.int64)


def _lane(lanes: Lanes, nodes: Integers, prices: Numbers, allowed: int, dead: int, switch_joules: float) -> Integers:
    """Return one rank's clocks: the cheapest at the relaxation's prices with at most the allowed switches."""
    durations = lanes.durations[nodes]
    value = lanes.joules[nodes] + prices[nodes][:, None] * durations
    value[durations == 0] = np.inf
    value -= value.min(axis=1, keepdims=True)
    switch = switch_joules + prices[nodes] * dead

    def tried(price: float) -> tuple[Integers, int]:
        path: Integers = cheapest_path(value, switch + price)
        return path, int((path != np.roll(path, 1)).sum())

    best, count = tried(0.0)
    if count <= allowed:
        return best
    # No price above the whole spread of values can be worth a switch, unless no single clock was measured throughout.
    low, high = 0.0, float(value[np.isfinite(value)].sum()) + 1.0
    best, count = tried(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        path, count = tried(middle)
        if count <= allowed:
            best, high = path, middle
        else:
            low = middle
    return best


@loop("i8[::1](f8[:,::1],f8[::1])")
def cheapest_path(value: Numbers, switch: Numbers) -> Integers:  # pragma: no cover
    """Return the clocks of least value when each change of clock before node n costs switch[n]."""
    nodes, clocks = value.shape
    total = value[0].copy()
    came = np.empty((nodes, clocks), dtype=np.int64)
    for node in range(1, nodes):
        cheapest = np.argmin(total)
        changed = total[cheapest] + switch[node]
        for clock in range(clocks):
            if total[clock] <= changed:
                came[node, clock] = clock
            else:
                came[node, clock] = cheapest
                total[clock] = changed
            total[clock] += value[node, clock]
    path = np.empty(nodes, dtype=np.int64)
    path[nodes - 1] = np.argmin(total)
    for node in range(nodes - 1, 0, -1):
        path[node - 1] = came[node, path[node]]
    return path


@loop("i8(i8[::1],i8[::1],i8[:,::1],i8[::1],i8[::1],i8[::1],i8,i8[::1])")
def switched_time(
    before_start: Integers, before: Integers, durations: Integers, previous: Integers, fixed: Integers,
    clocks: Integers, dead: int, ends: Integers,
) -> int:  # fmt: skip  # pragma: no cover
    """Return the longest path when each change of clock delays; the ends of nodes go into `ends`."""
    longest = 0
    for node in range(len(ends)):
        begin = np.int64(0)
        for place in range(before_start[node], before_start[node + 1]):
            begin = max(begin, ends[before[place]])
        length = fixed[node]
        if clocks[node] >= 0:
            length = durations[node, clocks[node]]
            if clocks[node] != clocks[previous[node]]:
                length += dead
        ends[node] = begin + length
        longest = max(longest, int(ends[node]))
    return longest


@inner
def _cost(
    start: Integers, nodes: Integers, joules: Numbers, clocks: Integers, switch_joules: float, rank: int
) -> tuple[float, int]:  # pragma: no cover
    """Return energy and switches of a rank."""
    total = np.float64(0.0)
    switches = 0
    last = clocks[nodes[start[rank + 1] - 1]]
    for place in range(start[rank], start[rank + 1]):
        clock = clocks[nodes[place]]
        total += joules[nodes[place], clock]
        if clock != last:
            switches += 1
            total += switch_joules
        last = clock
    return total, switches


@inner
def _can(durations: Integers, nodes: Integers, low: int, high: int, clock: int) -> bool:  # pragma: no cover
    """Whether all nodes of a stretch were measured at a clock."""
    for place in range(low, high):  # noqa: SIM110 - numba compiles no all()
        if durations[nodes[place], clock] == 0:
            return False
    return True


@inner
def _insert(
    before_start: Integers, before: Integers, start: Integers, nodes: Integers, durations: Integers, joules: Numbers,
    previous: Integers, fixed: Integers, clocks: Integers, limit: int, dead: int, switch_joules: float, visits: int,
    allowed: int, ends: Integers,
) -> tuple[bool, int]:  # fmt: skip  # pragma: no cover
    """Slow the inside of one segment down, where that pays most; return whether any does, and the visits used.

    Ends stay as they are over distances that grow by halves: pipelines have no time to spare where they fill and drain.
    """
    used = 0
    best_gain, best_low, best_high, best_clock = 1e-9, -1, -1, -1
    for rank in range(len(start) - 1):
        cost = _cost(start, nodes, joules, clocks, switch_joules, rank)[0]
        low = start[rank]
        while low < start[rank + 1] and used < visits:
            clock = clocks[nodes[low]]
            high = low + 1
            while high < start[rank + 1] and clocks[nodes[high]] == clock:
                high += 1
            left = 0
            while left < high - low:
                right = 0
                while left + right < high - low:
                    first, end = low + left, high - right
                    for other in range(clock - 1, -1, -1):
                        if not _can(durations, nodes, first, end, other):
                            continue
                        for place in range(first, end):
                            clocks[nodes[place]] = other
                        new_cost, new_switches = _cost(start, nodes, joules, clocks, switch_joules, rank)
                        used += 1
                        good = new_switches <= allowed and (
                            switched_time(before_start, before, durations, previous, fixed, clocks, dead, ends) <= limit
                        )
                        for place in range(first, end):
                            clocks[nodes[place]] = clock
                        if not good:
                            break
                        if cost - new_cost > best_gain:
                            best_gain, best_low, best_high, best_clock = cost - new_cost, first, end, other
                    right += 1 + right // 2
                left += 1 + left // 2
            low = high
    for place in range(best_low, best_high):
        clocks[nodes[place]] = best_clock
    return best_low >= 0, used


@loop("f8(i8[::1],i8[::1],i8[::1],i8[::1],i8[:,::1],f8[:,::1],i8[::1],i8[::1],i8[::1],i8,i8,f8,i8,i8)")
def move_segments(
    before_start: Integers, before: Integers, start: Integers, nodes: Integers, durations: Integers, joules: Numbers,
    previous: Integers, fixed: Integers, clocks: Integers, limit: int, dead: int, switch_joules: float, visits: int,
    allowed: int,
) -> float:  # fmt: skip  # pragma: no cover
    """Move segments while it pays: slower, faster, and their borders to and fro. The limit is kept all the time.

    Returns the energy of the clocks, which are changed in place.
    """
    count = durations.shape[1]
    ends = np.empty(len(clocks), dtype=np.int64)
    saved = clocks.copy()
    moved = True
    while moved and visits > 0:
        moved = False
        for rank in range(len(start) - 1):
            low = start[rank]
            while low < start[rank + 1]:
                clock = clocks[nodes[low]]
                high = low + 1
                while high < start[rank + 1] and clocks[nodes[high]] == clock:
                    high += 1
                cost, switches = _cost(start, nodes, joules, clocks, switch_joules, rank)
                best_cost, best_low, best_high, best_clock = cost - 1e-9, -1, -1, -1
                for kind in range(6):
                    first, end, other = low, high, clock
                    if kind < 3:
                        other = clock - 1 - kind
                    elif kind == 3:
                        other = clock + 1
                    elif kind == 4:  # the segment's first node joins the one before
                        other, end = clocks[previous[nodes[low]]], low + 1
                    else:  # its last node joins the one after
                        if high < start[rank + 1]:
                            other, first = clocks[nodes[high]], high - 1
                    if other < 0 or other >= count or other == clock:
                        continue
                    if not _can(durations, nodes, first, end, other):
                        continue
                    for place in range(first, end):
                        saved[nodes[place]] = clocks[nodes[place]]
                        clocks[nodes[place]] = other
                    new_cost, new_switches = _cost(start, nodes, joules, clocks, switch_joules, rank)
                    if new_cost < best_cost and new_switches <= max(allowed, switches):
                        visits -= 1
                        if switched_time(before_start, before, durations, previous, fixed, clocks, dead, ends) <= limit:
                            best_cost, best_low, best_high, best_clock = new_cost, first, end, other
                    for place in range(first, end):
                        clocks[nodes[place]] = saved[nodes[place]]
                if best_low >= 0:
                    for place in range(best_low, best_high):
                        clocks[nodes[place]] = best_clock
                    moved = True
                low = high
        if not moved and visits > 0:
            moved, used = _insert(
                before_start, before, start, nodes, durations, joules, previous, fixed, clocks, limit, dead,
                switch_joules, visits, allowed, ends,
            )  # fmt: skip
            visits -= used
    total = np.float64(0.0)
    for rank in range(len(start) - 1):
        if start[rank + 1] > start[rank]:
            total += _cost(start, nodes, joules, clocks, switch_joules, rank)[0]
    return total
