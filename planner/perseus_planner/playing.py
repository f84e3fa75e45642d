"""Plays orders step by step, as GPUs would: how long they take, or where they wait in a circle. Pure Python.

For who has no numpy (the operator): the graph (`dag`) knows more, and is what plans are made from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perseus_api.instructions import Instruction

from perseus_planner.pipeline import Pipeline
from perseus_planner.steps import Step

_GRADIENTS = (Instruction.BACKWARD, Instruction.BACKWARD_INPUT)
Place = tuple[Instruction, int, int]  # instruction (of gradients: BACKWARD), virtual stage, microbatch


@dataclass(frozen=True)
class Played:
    """What came of it.

    Attributes:
        seconds: until the last rank had run its order; of what ran, where not everything could.
        stuck: what each rank that could not go on waited at: rank and position in its order.
    """

    seconds: float
    stuck: tuple[tuple[int, int], ...]


def play(pipeline: Pipeline, seconds: Callable[[int, Step], float]) -> Played:
    """Run a pipeline's orders, every rank as soon as it can.

    Args:
        pipeline: its shape and orders.
        seconds: what a step of a virtual stage takes.

    Raises:
        PipelineError: the schedule has no order for these microbatches.
    """
    orders = pipeline.orders()
    last = pipeline.virtual_stages - 1
    virtual = [[pipeline.virtual_stage(rank, chunk) for chunk in range(pipeline.chunks)] for rank in range(len(orders))]
    ends: dict[Place, float] = {}
    position, now = [0] * len(orders), [0.0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                step = order[position[rank]]
                stage = virtual[rank][step.chunk]
                needed = _needed(step, stage, last)
                if needed is not None and needed not in ends:
                    break
                begin = now[rank] if needed is None else max(now[rank], ends[needed])
                now[rank] = ends[_place(step, stage)] = begin + seconds(stage, step)
                position[rank] += 1
                moved = True
    stuck = tuple((rank, position[rank]) for rank, order in enumerate(orders) if position[rank] < len(order))
    return Played(max(now), stuck)


def _place(step: Step, stage: int) -> Place:
    instruction = Instruction.BACKWARD if step.instruction in _GRADIENTS else step.instruction
    return instruction, stage, step.microbatch


def _needed(step: Step, stage: int, last: int) -> Place | None:
    """What must have ended before, by the rules of `dag.build_dag`."""
    if step.instruction is Instruction.FORWARD:
        return (Instruction.FORWARD, stage - 1, step.microbatch) if stage else None
    if step.instruction in _GRADIENTS:
        if stage == last:
            return Instruction.FORWARD, stage, step.microbatch
        return Instruction.BACKWARD, stage + 1, step.microbatch
    if step.instruction is Instruction.BACKWARD_WEIGHT:
        return Instruction.BACKWARD, stage, step.microbatch
    if step.instruction is Instruction.RECOMPUTE:
        return Instruction.FORWARD, stage, step.microbatch
    return None
