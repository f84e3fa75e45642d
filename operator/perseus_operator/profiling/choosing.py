"""Which clocks to measure next: all of them downward, or only those that can change a plan. Pure.

The full sweep goes down the device's own list and stops when energy has risen five clocks in a row. The adaptive one
begins with a few clocks far apart and halves those gaps in which the lower hull of (time, energy) can still hide
something: between two measured points a convex curve lies above what the neighbouring chords allow, and below the chord
itself. Energy is taken less what the GPU would draw waiting for as long, since that is what a plan trades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from perseus_operator.profiling.merging import Key, Row

COARSE_RATIO = 0.92
FIRST_ROUND = 5  # then one clock of the coarse grid after the other, until energy rises
RISES = 5
FULL_ROUND = RISES  # clocks of one round of the full sweep: none much beyond where it stops
MAXIMUM_SHARE = 1 / 3
REFINED_ROUND = 4
# A gap that can hide less than this share of the energy changes no plan that one could tell.
SMALLEST_GAP = 0.001
Point = tuple[float, float]  # seconds, joules


def next_clocks(
    supported: Sequence[int], rows: Mapping[int, Mapping[Key, Row]], blocking: float, given_up: frozenset[int],
    adaptive: bool,
) -> list[int]:  # fmt: skip
    """Return the clocks to measure next in MHz, falling; empty: it is enough.

    Args:
        supported: clocks of the device in MHz.
        rows: measured so far, by clock.
        blocking: power in watts of a GPU that waits.
        given_up: clocks that could not be measured.
        adaptive: whether only clocks that can change a plan are wanted.
    """
    clocks = sorted((each for each in supported if each not in given_up), reverse=True)
    measured = [each for each in clocks if each in rows]
    if not measured:
        return clocks[:1]  # What lower ones cost in time is known from there.
    energies = {clock: sum(row.energy_joules for row in rows[clock].values()) for clock in measured}
    if not adaptive:
        return _downward(clocks, measured, energies)
    coarse = [each for each in _coarse(clocks, energies) if each not in rows]
    if coarse:
        return coarse
    left = most_clocks(clocks, energies) - len(measured)
    gaps = sorted(_gaps(measured, rows, blocking), reverse=True)
    found: list[int] = []
    for hidden, upper, lower in gaps:
        middle = _middle(clocks, upper, lower)
        if hidden > SMALLEST_GAP and middle is not None and len(found) < min(left, REFINED_ROUND):
            found.append(middle)
    return sorted(found, reverse=True)


def most_clocks(clocks: Sequence[int], energies: Mapping[int, float]) -> int:
    """Return how many clocks an adaptive sweep may measure: a third of what the full one would."""
    if not energies:
        return max(3, int(MAXIMUM_SHARE * len(clocks)))
    cheapest = min(energies, key=lambda clock: energies[clock])
    full = sum(clock >= cheapest for clock in clocks) + RISES
    return max(3, int(MAXIMUM_SHARE * min(full, len(clocks))))


def _downward(clocks: list[int], measured: list[int], energies: Mapping[int, float]) -> list[int]:
    """Return the next clocks of the full sweep: none once the last five all cost more than the cheapest."""
    for place in range(len(measured) - RISES + 1):
        before = [energies[clock] for clock in measured[:place]]
        if before and min(energies[clock] for clock in measured[place : place + RISES]) > min(before):
            return []
    lowest = min(measured, default=max(clocks) + 1)
    # What did not become exact enough comes again, before what lies below.
    again = [clock for clock in clocks if clock > lowest and clock not in energies]
    return (again + [clock for clock in clocks if clock < lowest])[:FULL_ROUND]


def _coarse(clocks: list[int], energies: Mapping[int, float]) -> list[int]:
    """Return the clocks of the coarse grid, down to the first that costs more energy than the cheapest before it."""
    if not clocks:
        return []
    grid = [clocks[0]]
    while True:
        below = [clock for clock in clocks if clock <= grid[-1] * COARSE_RATIO]
        if not below:
            break
        grid.append(below[0])
    known = [clock for clock in grid if clock in energies]
    for place, clock in enumerate(known):
        if place and energies[clock] > min(energies[each] for each in known[:place]):
            return grid[: grid.index(clock) + 1]
    return grid[: max(FIRST_ROUND, len(known) + 1)]


def _gaps(measured: list[int], rows: Mapping[int, Mapping[Key, Row]], blocking: float) -> list[tuple[float, int, int]]:
    """Return for each pair of neighbours what may hide between them, as a share of the energy at the highest clock."""
    keys = set.intersection(*(set(rows[clock]) for clock in measured)) if measured else set()
    total = sum(rows[measured[0]][key].energy_joules for key in keys) if measured else 0.0
    hidden: dict[tuple[int, int], float] = {}
    for key in keys:
        at = [rows[clock][key] for clock in measured]
        points = [(row.time_seconds, row.energy_joules - blocking * row.time_seconds) for row in at]
        for place, pair in enumerate(pairwise(measured)):
            before = points[place - 1] if place else None
            after = points[place + 2] if place + 2 < len(points) else None
            hidden[pair] = hidden.get(pair, 0.0) + _hidden(before, points[place], points[place + 1], after)
    return [(value / total, upper, lower) for (upper, lower), value in hidden.items()] if total else []


def _hidden(before: Point | None, left: Point, right: Point, after: Point | None) -> float:
    """Return how far below its chord a convex curve can lie between two points, given their outer neighbours."""
    chord = _slope(left, right)
    if chord is None or chord >= 0:
        return 0.0  # Beyond the cheapest point no plan goes.
    steep = _slope(before, left) if before else None
    flat = _slope(right, after) if after else None
    # Without a neighbour on the left the curve may fall at once; on the right it may be flat from there.
    steep = 2 * chord if steep is None else min(steep, chord)
    flat = 0.0 if flat is None else min(max(flat, chord), 0.0)
    if flat <= steep:
        return 0.0
    span = right[0] - left[0]
    # The lines through the two points with the outer slopes meet here.
    meet = (right[1] - left[1] - flat * span) / (steep - flat)
    meet = min(max(meet, 0.0), span)
    return max(0.0, (chord - steep) * meet)


def _slope(one: Point, other: Point | None) -> float | None:
    if other is None or other[0] <= one[0]:
        return None
    return (other[1] - one[1]) / (other[0] - one[0])


def _middle(clocks: list[int], upper: int, lower: int) -> int | None:
    between = [clock for clock in clocks if lower < clock < upper]
    return min(between, key=lambda clock: abs(clock - (upper + lower) / 2)) if between else None
