"""Rounds that let ranks wait, where a schedule does not, so that their power stands out of the counter's noise. Pure.

Ranks of a zero-bubble schedule wait for a few milliseconds of an iteration. More such iterations help little: the error
falls with the root of their number, and agents fit the newest rows alone. But ranks wait long for neighbours that run
at a low clock. So every other rank runs at the lowest clock that was measured, then those between them do, and the
bound on the slowdown holds as for any iteration at that clock.
"""

from __future__ import annotations

from collections.abc import Iterable

from perseus_planner import Pipeline

from perseus_operator.profiling.bounds import Clocks, Measurements, slowdown_at, turn_at
from perseus_operator.profiling.merging import Measured, blocking_power

# Relative standard error at which the power of waiting is exact enough.
BLOCKING_ERROR = 0.008


def is_waiting_known(measured: Measured, models: Iterable[str]) -> bool:
    """Whether the power of waiting is known well enough of each of some GPU models."""
    found = [blocking_power(measured.blocking.get(model, {})) for model in models]
    return all(power is not None and power.watts_stderr <= BLOCKING_ERROR * power.watts for power in found)


def waiting_turns(pipeline: Pipeline, measured: Measurements, count: int, bound: float) -> list[tuple[Clocks, int]]:
    """Return clocks and number of iterations, one after the other, in which each rank waits for its neighbours.

    Args:
        pipeline: of two or more ranks.
        measured: rows of two clocks or more.
        count: iterations in which each half of the ranks is slow.
        bound: how much longer iterations may be on average.
    """
    lowest, highest = min(measured), max(measured)
    # No rank is slower than in an iteration in which all are slow.
    slowdown = slowdown_at(pipeline, lowest, highest, measured)
    halves = ((lowest, highest), (highest, lowest))
    return [window for clocks in halves for window in turn_at(clocks, highest, slowdown, bound)] * count
