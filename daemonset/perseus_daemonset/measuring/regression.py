"""Least squares over few unknowns in plain Python: which powers explain what the energy counter showed. Pure.

A row is a stretch of time between two refreshes of the counter: how long the GPU was in each state, and the energy that
it used. Rows are added up as they come; nothing of them is kept but sums.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
# A state that was seen for less time than this share of a counter's period leaves the system undetermined.
_SMALLEST_PIVOT = 1e-9


@dataclass(frozen=True, slots=True)
class Power:
    """Watts of one state, their standard error, and for how long the state was seen."""

    watts: float
    stderr: float
    seconds: float


class PowerFit(Generic[State]):
    """The normal equations of one kind of work."""

    def __init__(self) -> None:
        """Begin without rows."""
        self.rows = 0
        self._products: dict[tuple[State, State], float] = {}
        self._energies: dict[State, float] = {}
        self._seconds: dict[State, float] = {}
        self._square = 0.0

    def add(self, seconds: Mapping[State, float], joules: float) -> None:
        """Add a row: time in each state, and the energy of all together."""
        self.rows += 1
        self._square += joules * joules
        for state, time in seconds.items():
            self._energies[state] = self._energies.get(state, 0.0) + time * joules
            self._seconds[state] = self._seconds.get(state, 0.0) + time
            for other, more in seconds.items():
                self._products[state, other] = self._products.get((state, other), 0.0) + time * more

    def solve(self) -> dict[State, Power]:
        """Return the power of each state that the rows determine; empty while they determine none."""
        states = list(self._energies)
        size = len(states)
        if self.rows <= size:
            return {}
        matrix = [[self._products.get((row, column), 0.0) for column in states] for row in states]
        inverse = _inverse(matrix)
        if inverse is None:
            return {}
        energies = [self._energies[state] for state in states]
        watts = [sum(inverse[i][j] * energies[j] for j in range(size)) for i in range(size)]
        explained = sum(watt * energy for watt, energy in zip(watts, energies, strict=True))
        variance = max(0.0, self._square - explained) / (self.rows - size)
        return {
            state: Power(watts[index], math.sqrt(max(0.0, variance * inverse[index][index])), self._seconds[state])
            for index, state in enumerate(states)
        }


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
