"""The compiled loop of the search: ruin a few instructions, hand out what that frees, keep it or take it back.

A step changes a dozen durations, and most of what precedes or follows them stays as it was. So nothing is computed
anew that no change has reached: who follows a change is marked in a set of bits, in topological order, and marks are
worked off only as far as the next instruction that is looked at needs.

Nodes are numbered so that each interval of numbers is convex (no path leaves it and returns). Rows of predecessors and
followers have the same width, filled up with a node that does not exist and takes no time: loops of one length are what
a processor foresees. Random numbers are drawn here (xorshift, Marsaglia 2003): numpy's would take a third of the time.
Nothing here knows of stages or clocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from perseus_planner.loops import inlined, inner, loop

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_SEED = 0x9E3779B97F4A7C15
# Where the lowest bit of a word is, by the product with a de Bruijn sequence (Leiserson et al., 1998).
_SEQUENCE = 0x03F79D71B4CB0A89
_PLACES = np.zeros(64, dtype=np.int64)
for _bit in range(64):
    _PLACES[((_SEQUENCE << _bit) & (2**64 - 1)) >> 58] = _bit


@inlined
def _draw(state: Words) -> Any:  # pragma: no cover
    word = state[0]
    word ^= word << np.uint64(13)
    word ^= word >> np.uint64(7)
    word ^= word << np.uint64(17)
    state[0] = word
    return word


@inlined
def _below(state: Words, bound: int) -> Any:  # pragma: no cover
    """Return a random integer from 0 up to, not including, the bound (at most 2^31)."""
    return np.int64(((_draw(state) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@inlined
def _fraction(state: Words) -> float:  # pragma: no cover
    """Return a random number from 0 to 1."""
    return np.float64(np.int64(_draw(state) >> np.uint64(11))) * (1.0 / (1 << 53))


@inlined
def _farthest(rows: Integers, ends: Integers, node: int) -> Any:  # pragma: no cover
    """Return the latest end in a node's row."""
    latest = np.int64(0)
    for place in range(rows.shape[1]):
        latest = max(latest, ends[rows[node, place]])
    return latest


@inlined
def _mark(rows: Integers, node: int, end: int, marks: Words) -> None:  # pragma: no cover
    for place in range(rows.shape[1]):
        other = rows[node, place]
        if other < end:
            marks[other >> 6] |= np.uint64(1) << np.uint64(other & 63)


@inlined
def _take(
    node: int, option: int, picoseconds: Integers, trial: Integers, durations: Integers, mirrored: Integers,
    ends: Integers, tails: Integers, after: Integers, ahead: Integers, high: int, tail_high: int, marks: Words,
    tail_marks: Words,
) -> None:  # fmt: skip  # pragma: no cover
    """Let a node take an option; who follows it, in the graph and in its mirror, is marked."""
    mirror = len(trial) - 1 - node
    by = picoseconds[option] - durations[node]
    trial[node] = option
    durations[node] += by
    mirrored[mirror] += by
    ends[node] += by
    tails[mirror] += by
    _mark(after, node, high, marks)
    _mark(ahead, mirror, tail_high, tail_marks)


@inlined
def _settle(
    before: Integers, after: Integers, durations: Integers, ends: Integers, marks: Words, low: int, until: int,
    high: int,
) -> None:  # fmt: skip  # pragma: no cover
    """Work off the marks of nodes from low up to, not including, `until`."""
    for index in range(low >> 6, (until + 63) >> 6):
        mask = ~np.uint64(0)
        if index == until >> 6:
            mask = (np.uint64(1) << np.uint64(until & 63)) - np.uint64(1)
        while True:
            word = marks[index] & mask
            if word == 0:
                break
            bit = word & (~word + np.uint64(1))
            marks[index] ^= bit
            node = (index << 6) + _PLACES[(bit * np.uint64(_SEQUENCE)) >> np.uint64(58)]
            end = _farthest(before, ends, node) + durations[node]
            if end != ends[node]:
                ends[node] = end
                _mark(after, node, high, marks)


@inlined
def _group(
    before: Integers, after: Integers, first: Integers, group: Integers, member: npt.NDArray[np.bool_], size: int,
    low: int, high: int, state: Words,
) -> int:  # fmt: skip  # pragma: no cover
    """Grow a random connected group inside an interval; return how many of it have a choice; they come first."""
    group[0] = low + _below(state, high - low)
    member[group[0]] = True
    count = 1
    width = before.shape[1]
    for _ in range(6 * size):
        if count == size:
            break
        word = _draw(state)
        node = group[np.int64(((word >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))]
        pick = np.int64(((word & np.uint64(0xFFFFFFFF)) * np.uint64(2 * width)) >> np.uint64(32))
        other = before[node, pick] if pick < width else after[node, pick - width]
        if low <= other < high and not member[other]:
            member[other] = True
            group[count] = other
            count += 1
    free = 0
    for index in range(count):
        node = group[index]
        member[node] = False
        if first[node + 1] - first[node] > 1:
            group[free] = node
            free += 1
    return free


@inner
def settle_all(rows: Integers, durations: Integers, ends: Integers, low: int, high: int) -> None:  # pragma: no cover
    """Compute the ends of an interval anew."""
    for node in range(low, high):
        ends[node] = _farthest(rows, ends, node) + durations[node]


@loop("Tuple((i8[::1],f8))(i8[:,::1],i8[:,::1],i8[::1],i8[::1],f8[::1],f8[::1],i8[::1],i8,f8,i8,f8[::1],i8,i8,i8,i8)")
def ruin_and_recreate(
    before: Integers, after: Integers, first: Integers, picoseconds: Integers, joules: Numbers, paid: Numbers,
    start: Integers, limit: int, unit: float, steps: int, temperatures: Numbers, largest: int, window: int,
    sweeps: int, seed: int,
) -> tuple[Integers, float]:  # fmt: skip  # pragma: no cover
    """Search from a plan on.

    Args:
        before: predecessors of each node, filled up with the number of nodes.
        after: followers of each node, likewise.
        first: where each node's options begin (one entry more than nodes); they grow in time and fall in cost.
        picoseconds: of each option.
        joules: cost of each option.
        paid: what each option's time costs at its node's price.
        start: option of each node.
        limit: no path is longer, in ps.
        unit: of the temperatures, in joules.
        steps: how many to take.
        temperatures: the first and the last.
        largest: how many instructions are ruined at once, at most.
        window: how many instructions are worked at in turn.
        sweeps: through all windows, each cooler than the one before.
        seed: of the random numbers.

    Returns:
        The best plan found, and its cost relative to the start.
    """
    state = np.empty(1, dtype=np.uint64)
    state[0] = np.uint64(_SEED) * np.uint64(2 * seed + 1)
    nodes, width = before.shape
    behind, ahead = np.full((nodes, width), nodes), np.full((nodes, width), nodes)  # the same graph, mirrored
    for node in range(nodes):
        for place in range(width):
            if before[node, place] < nodes:
                ahead[nodes - 1 - node, place] = nodes - 1 - before[node, place]
            if after[node, place] < nodes:
                behind[nodes - 1 - node, place] = nodes - 1 - after[node, place]
    current, trial, best = start.copy(), start.copy(), start.copy()
    durations = picoseconds[current]
    mirrored = durations[::-1].copy()
    ends, tails = np.zeros(nodes + 1, dtype=np.int64), np.zeros(nodes + 1, dtype=np.int64)
    marks, tail_marks = np.zeros((nodes >> 6) + 1, dtype=np.uint64), np.zeros((nodes >> 6) + 1, dtype=np.uint64)
    group = np.empty(largest, dtype=np.int64)
    member = np.zeros(nodes, dtype=np.bool_)
    cost = np.float64(0.0)
    best_cost = np.float64(0.0)
    stride = max(1, window // 2)
    windows = 1 if nodes <= window else 1 + (nodes - window + stride - 1) // stride
    cooling = (temperatures[1] / temperatures[0]) ** (1.0 / max(1, sweeps - 1))
    temperature = temperatures[0] * unit
    each = max(1, steps // (sweeps * windows))
    settle_all(before, durations, ends, 0, nodes)
    kept, kept_tails = ends.copy(), tails.copy()
    for _ in range(sweeps):
        # Ends left of the window and tails right of it are exact: the sweep changes neither until it gets there.
        settle_all(behind, mirrored, tails, 0, nodes)
        for number in range(windows):
            low = number * stride
            high = min(nodes, low + window)
            tail_low, tail_high = nodes - high, nodes - low
            settle_all(before, durations, ends, max(0, low - stride), high)
            settle_all(behind, mirrored, tails, tail_low, tail_high)
            kept[low:high] = ends[low:high]
            kept_tails[tail_low:tail_high] = tails[tail_low:tail_high]
            for _ in range(each):
                count = _group(before, after, first, group, member, 1 + _below(state, largest), low, high, state)
                if count == 0:
                    continue
                for index in range(count):
                    other = index + _below(state, count - index)
                    node = group[other]
                    group[other], group[index] = group[index], node
                    if trial[node] != first[node]:
                        _take(
                            node, first[node], picoseconds, trial, durations, mirrored, ends, tails, after, ahead, high,
                            tail_high, marks, tail_marks,
                        )  # fmt: skip
                change = np.float64(0.0)
                moved = False
                for index in range(count):
                    node = group[index]
                    mirror = nodes - 1 - node
                    _settle(before, after, durations, ends, marks, low, node, high)
                    _settle(behind, ahead, mirrored, tails, tail_marks, tail_low, mirror, tail_high)
                    room = limit - _farthest(before, ends, node) - _farthest(behind, tails, mirror)
                    price = 1.2 * _fraction(state)
                    option = first[node]
                    least = joules[option] + price * paid[option]
                    for other in range(option + 1, first[node + 1]):
                        if picoseconds[other] > room:
                            break
                        value = joules[other] + price * paid[other]
                        if value < least:
                            least = value
                            option = other
                    if option != trial[node]:
                        _take(
                            node, option, picoseconds, trial, durations, mirrored, ends, tails, after, ahead, high,
                            tail_high, marks, tail_marks,
                        )  # fmt: skip
                    if option != current[node]:
                        moved = True
                        change += joules[option] - joules[current[node]]
                if moved and (change <= 0 or _fraction(state) < np.exp(-change / temperature)):
                    for index in range(count):
                        current[group[index]] = trial[group[index]]
                    _settle(before, after, durations, ends, marks, low, high, high)
                    _settle(behind, ahead, mirrored, tails, tail_marks, tail_low, tail_high, tail_high)
                    kept[low:high] = ends[low:high]
                    kept_tails[tail_low:tail_high] = tails[tail_low:tail_high]
                    cost += change
                    if cost < best_cost - 1e-12:
                        best_cost = cost
                        best[:] = current
                    continue
                for index in range(count):
                    node = group[index]
                    trial[node] = current[node]
                    durations[node] = picoseconds[current[node]]
                    mirrored[nodes - 1 - node] = durations[node]
                ends[low:high] = kept[low:high]
                tails[tail_low:tail_high] = kept_tails[tail_low:tail_high]
                marks[low >> 6 : (high >> 6) + 1] = 0
                tail_marks[tail_low >> 6 : (tail_high >> 6) + 1] = 0
        temperature *= cooling
    return best, best_cost
