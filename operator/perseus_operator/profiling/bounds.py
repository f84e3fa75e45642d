"""How much longer an iteration becomes at a clock, and how far such iterations must lie apart for the bound. Pure.

An iteration at a low clock may be longer than the bound allows: then it runs alone, with as many at the highest clock
after it as bring the average of them all down to the bound. Times of clocks that were not measured yet are taken to
grow with 1/clock from the nearest measured one above, which none exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from perseus_api.instructions import Instruction
from perseus_planner import Pipeline, Step
from perseus_planner.playing import play

from perseus_operator.profiling.merging import Key, Row

Measurements = Mapping[int, Mapping[Key, Row]]  # by clock in MHz
Clocks = tuple[int, ...]  # in MHz, of one rank after another; they come again where there are more ranks
# What the prediction leaves out (messages, a change of clock that takes time) must fit as well.
MARGIN = 0.9
_NOMINAL = {Instruction.BACKWARD: 2.0}


def slowdown_at(pipeline: Pipeline, clock: int, highest: int, measured: Measurements) -> float:
    """Return how much longer an iteration at a clock is than at the highest, at most: 0.1 is 10 %."""
    return iteration_time(pipeline, clock, measured) / iteration_time(pipeline, highest, measured) - 1


def iterations_between(slowdown: float, bound: float) -> int:
    """Return how many iterations at the highest clock must follow a slow one, so that all together keep the bound."""
    return max(0, math.ceil(slowdown / (MARGIN * bound)) - 1)


def turn_at(clocks: Clocks, highest: int, slowdown: float, bound: float) -> list[tuple[Clocks, int]]:
    """Return clocks and number of iterations: one at some clocks, and those at the highest that the bound asks for."""
    pause = iterations_between(slowdown, bound)
    return [(clocks, 1), *([((highest,), pause)] if pause else [])]


def iteration_time(pipeline: Pipeline, clock: int, measured: Measurements) -> float:
    """Return how long a pipeline takes with everything at a clock, every rank running as soon as it can.

    In seconds once any clock is measured; before that in units of their own.
    """
    seconds: dict[Key, float] = {}

    def take(stage: int, step: Step) -> float:
        key = stage, step.instruction
        found = seconds.get(key)
        if found is None:
            found = seconds[key] = instruction_time(key, clock, measured)
        return found

    return play(pipeline, take).seconds


def instruction_time(key: Key, clock: int, measured: Measurements) -> float:
    """Return an instruction's time at a clock: measured, or not exceeded."""
    instruction = key[1]
    if not instruction.has_clock:
        return 0.0
    known = [each for each in measured if key in measured[each]]
    if not known:
        return _NOMINAL.get(instruction, 1.0) / clock
    above = [each for each in known if each >= clock]
    nearest = min(above) if above else max(known)
    return measured[nearest][key].time_seconds * max(1.0, nearest / clock)
