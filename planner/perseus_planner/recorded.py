"""Orders that ranks were seen to run, as a pipeline: what the operator knows of them without numpy. Pure Python.

How chunks lie may be unknown: then what can run tells. Orders made for a V stand still when they are played in a loop,
and the other way round; but for some (all forwards, then all backwards) both would do.
"""

from __future__ import annotations

from dataclasses import replace

from perseus_api.instructions import Instruction
from perseus_api.orders import PipelineOrders

from perseus_planner.pipeline import Pipeline
from perseus_planner.playing import play
from perseus_planner.steps import Step


def recorded_pipeline(orders: PipelineOrders, tensor_parallel: int = 1) -> Pipeline:
    """Return the pipeline of recorded orders: as many microbatches and chunks as they name."""
    chunks = orders.chunks or tuple((0,) * len(order) for order in orders.order)
    given = tuple(
        tuple(Step(Instruction.from_code(letter), *place) for letter, *place in zip(*stage, strict=True))
        for stage in zip(orders.order, orders.microbatches, chunks, strict=True)
    )
    return Pipeline.of_orders(given, tensor_parallel, orders.v_shape)


def problem_of(pipeline: Pipeline) -> str:
    """Return why orders cannot run as a pipeline, naming stage and entry; empty if they can."""
    lacking = pipeline.lacking_chunk()
    if lacking:
        return lacking
    stuck = play(pipeline, lambda *_: 1.0).stuck
    if not stuck:
        return ""
    stage, entry = stuck[0]
    step = pipeline.orders()[stage][entry]
    chunk = f", chunk {step.chunk}," if pipeline.chunks > 1 else ""
    return (
        f"stage {stage} entry {entry}, {step.instruction.value} of microbatch {step.microbatch}{chunk} waits for what "
        "never comes"
    )


def possible_placements(pipeline: Pipeline) -> tuple[bool, ...]:
    """Return in which placements of their chunks orders can run: False in a loop, True in V shape.

    Where both are the same (one chunk, or one stage), in a loop.
    """
    same = pipeline.chunks == 1 or pipeline.stages == 1
    tried = (False,) if same else (False, True)
    return tuple(v_shape for v_shape in tried if not problem_of(replace(pipeline, v_shape=v_shape)))
