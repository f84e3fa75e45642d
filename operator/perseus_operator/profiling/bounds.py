"""How much longer an iteration becomes at a clock, and how far such iterations must lie apart for the bound. Pure.

An iteration at a low clock may be longer than the bound allows: then it runs alone, with as many at the highest clock
after it as bring the average of them all down to the bound. Times of clocks that were not measured yet are taken to
grow with 1/clock from the nearest measured one above, which none exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from perseus_api.instructions import Instruction
from perseus_planner import Order

from perseus_operator.profiling.merging import Key, Row

Measurements = Mapping[int, Mapping[Key, Row]]  # by clock in MHz
# What the prediction leaves out (messages, a change of clock that takes time) must fit as well.
MARGIN = 0.9
_NOMINAL = {Instruction.BACKWARD: 2.0}


def slowdown_at(orders: Sequence[Order], clock: int, highest: int, measured: Measurements) -> float:
    """Return how much longer an iteration at a clock is than at the highest, at most: 0.1 is 10 %."""
    return iteration_time(orders, clock, measured) / iteration_time(orders, highest, measured) - 1


def iterations_between(slowdown: float, bound: float) -> int:
    """Return how many iterations at the highest clock must follow a slow one, so that all together keep the bound."""
    return max(0, math.ceil(slowdown / (MARGIN * bound)) - 1)


def iteration_time(orders: Sequence[Order], clock: int, measured: Measurements) -> float:
    """Return how long a pipeline takes with everything at a clock, every rank running as soon as it can.

    In seconds once any clock is measured; before that in units of their own.
    """
    kinds = {(stage, step.instruction) for stage, order in enumerate(orders) for step in order}
    seconds = {key: instruction_time(key, clock, measured) for key in kinds}
    ends: dict[tuple[Instruction, int, int], float] = {}
    place = [0] * len(orders)
    now = [0.0] * len(orders)
    last = len(orders) - 1
    moved = True
    while moved:
        moved = False
        for stage, order in enumerate(orders):
            while place[stage] < len(order):
                step = order[place[stage]]
                needed = _needed(step.instruction, stage, step.microbatch, last)
                if needed is not None and needed not in ends:
                    break
                begin = max(now[stage], ends[needed] if needed is not None else 0.0)
                now[stage] = begin + seconds[stage, step.instruction]
                ends[step.instruction, stage, step.microbatch] = now[stage]
                place[stage] += 1
                moved = True
    return max(now)


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


def _needed(instruction: Instruction, stage: int, microbatch: int, last: int) -> tuple[Instruction, int, int] | None:
    """What must have ended on another stage: the orders of a job's schedules have one chunk on each rank."""
    if instruction is Instruction.FORWARD:
        return (instruction, stage - 1, microbatch) if stage else None
    if instruction in (Instruction.BACKWARD, Instruction.BACKWARD_INPUT):
        return (instruction, stage + 1, microbatch) if stage < last else (Instruction.FORWARD, stage, microbatch)
    return None
