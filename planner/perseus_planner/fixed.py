"""Where fixed instructions stand: loading, transfers, the gradients' reduction and the optimiser's step.

They have no clock, but they take time and energy, so a plan that leaves them out promises times that nobody keeps. A
profile that measures one says on which virtual stage it runs; where it runs is the same for every schedule:

- `load` before each forward of its virtual stage;
- `allreduce`, then `optimizer`, once (as microbatch 0) at the end of its rank's order;
- `p2p` on the edges that leave its virtual stage for another rank: no step of an order (see `dag`).

An order that names one itself knows better: there nothing is added for that virtual stage.
"""

from __future__ import annotations

from perseus_api.instructions import Instruction
from perseus_api.profile import Profile

from perseus_planner.pipeline import Order, Pipeline, Step

_AT_THE_END = (Instruction.ALLREDUCE, Instruction.OPTIMIZER)


def with_fixed(orders: tuple[Order, ...], pipeline: Pipeline, profile: Profile) -> tuple[Order, ...]:
    """Return the orders with the fixed instructions that the profile measures and the orders do not name."""
    measured = {key for key in profile.measurements if not key[1].has_clock}
    if not measured:
        return orders
    return tuple(_of_rank(rank, order, pipeline, measured) for rank, order in enumerate(orders))


def transferring(pipeline: Pipeline, profile: Profile) -> frozenset[int]:
    """Return the virtual stages of a pipeline for which the profile measures transfers."""
    return frozenset(
        stage for stage in range(pipeline.virtual_stages) if (stage, Instruction.P2P) in profile.measurements
    )


def _of_rank(rank: int, order: Order, pipeline: Pipeline, measured: set[tuple[int, Instruction]]) -> Order:
    named = {(step.chunk, step.instruction) for step in order if not step.instruction.has_clock}

    def adds(chunk: int, instruction: Instruction) -> bool:
        present = (pipeline.virtual_stage(rank, chunk), instruction) in measured
        return present and (chunk, instruction) not in named

    loading = {chunk for chunk in range(pipeline.chunks) if adds(chunk, Instruction.LOAD)}
    found: list[Step] = []
    for step in order:
        if step.instruction is Instruction.FORWARD and step.chunk in loading:
            found.append(step._replace(instruction=Instruction.LOAD))
        found.append(step)
    found += [
        Step(instruction, 0, chunk)
        for instruction in _AT_THE_END
        for chunk in range(pipeline.chunks)
        if adds(chunk, instruction)
    ]
    return tuple(found)
