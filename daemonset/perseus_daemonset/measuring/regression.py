"""Least squares over few unknowns in plain Python: which powers explain what the energy counter showed. Pure.

A row is a stretch of time between two refreshes of the counter: how long the GPU was in each state, and the energy that
it used.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
MAXIMUM_ROWS = 1024
OUTLIER_DEVIATIONS = 4.0
ROBUST_PASSES = 6
# A state that was seen for less time than this share of a counter's period leaves the system undetermined.
_SMALLEST_PIVOT = 1e-9


@dataclass(frozen=True, slots=True)
class Power:
    """Watts of one state, their standard error, and for how long the state was seen."""

    watts: float
    stderr: float
    seconds: float


Row = tuple[dict[State, float], float]  # seconds in each state, joules


class PowerFit(Generic[State]):
    """The rows of one kind of work; of more than `MAXIMUM_ROWS` the newest count."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._rows: deque[Row[State]] = deque(maxlen=MAXIMUM_ROWS)
        self._solution: dict[State, Power] | None = None

    def add(self, seconds: Mapping[State, float], joules: float) -> None:
        """Add a row: time in each state, and the energy of all together."""
        self._rows.append((dict(seconds), joules))
        self._solution = None

    def solve(self) -> dict[State, Power]:
        """Return the power of each state that the rows determine; empty while they determine none.

        A row that the powers explain far worse than the others is left out: something was told late there.
        """
        if self._solution is None:
            rows = list(self._rows)
            # Least absolute deviations first, by reweighting: what is far off weighs little.
            found = _fit(rows, [1.0] * len(rows))
            for _ in range(ROBUST_PASSES):
                misses = _misses(rows, found)
                least = 1e-3 * max(1e-6, sorted(misses)[len(misses) // 2]) if misses else 0.0
                found = _fit(rows, [1 / max(miss, least) for miss in misses]) if misses else found
            misses = _misses(rows, found)
            if misses:
                limit = OUTLIER_DEVIATIONS * 1.4826 * sorted(misses)[len(misses) // 2] + 1e-9
                kept = [row for row, miss in zip(rows, misses, strict=True) if miss <= limit]
                found = _fit(kept, [1.0] * len(kept))
            self._solution = found
        return self._solution


def _fit(rows: list[Row[State]], weights: list[float]) -> dict[State, Power]:
    products: dict[tuple[State, State], float] = {}
    energies: dict[State, float] = {}
    totals: dict[State, float] = {}
    square = 0.0
    for (seconds, joules), weight in zip(rows, weights, strict=True):
        square += weight * joules * joules
        for state, time in seconds.items():
            energies[state] = energies.get(state, 0.0) + weight * time * joules
            totals[state] = totals.get(state, 0.0) + time
            for other, more in seconds.items():
                products[state, other] = products.get((state, other), 0.0) + weight * time * more
    states = list(energies)
    size = len(states)
    if len(rows) <= size:
        return {}
    inverse = _inverse([[products.get((row, column), 0.0) for column in states] for row in states])
    if inverse is None:
        return {}
    watts = [sum(inverse[i][j] * energies[states[j]] for j in range(size)) for i in range(size)]
    explained = sum(watt * energies[state] for watt, state in zip(watts, states, strict=True))
    variance = max(0.0, square - explained) / (len(rows) - size)
    return {
        state: Power(watts[index], math.sqrt(max(0.0, variance * inverse[index][index])), totals[state])
        for index, state in enumerate(states)
    }


def _misses(rows: list[Row[State]], powers: Mapping[State, Power]) -> list[float]:
    """Return by how much the powers miss each row; nothing where there are none."""
    if not powers:
        return []
    return [
        abs(joules - sum(powers[state].watts * time for state, time in seconds.items())) for seconds, joules in rows
    ]


def _inverse(matrix: list[list[float]]) -> list[list[float]] | None:
    """Invert a symmetric positive matrix by Gauss and Jordan, scaled to a unit diagonal; None if it is singular."""
    size = len(matrix)
    if any(matrix[i][i] <= 0 for i in range(size)):
        return None
    scale = [1 / math.sqrt(matrix[i][i]) for i in range(size)]
    work = [
        [matrix[i][j] * scale[i] * scale[j] for j in range(size)] + [float(i == j) for j in range(size)]
        for i in range(size)
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(work[row][column]))
        if abs(work[pivot][column]) < _SMALLEST_PIVOT:
            return None
        work[column], work[pivot] = work[pivot], work[column]
        lead = work[column][column]
        work[column] = [value / lead for value in work[column]]
        for row in range(size):
            factor = work[row][column]
            if row != column and factor:
                work[row] = [value - factor * above for value, above in zip(work[row], work[column], strict=True)]
    return [[work[i][size + j] * scale[i] * scale[j] for j in range(size)] for i in range(size)]
