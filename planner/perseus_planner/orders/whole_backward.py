"""Schedules with one model chunk on each rank and a backward in one piece: GPipe, 1F1B, and 1F1B with recomputation."""

from __future__ import annotations

from perseus_api.instructions import Instruction

from perseus_planner.steps import Order, Step

_FORWARD, _BACKWARD, _RECOMPUTE = Instruction.FORWARD, Instruction.BACKWARD, Instruction.RECOMPUTE


def gpipe(rank: int, ranks: int, microbatches: int) -> Order:  # noqa: ARG001 - one signature for all schedules
    """Return a rank's order in GPipe: all forwards, then all backwards.

    Huang et al., GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, NeurIPS 2019. The
    backwards run in the order of the forwards, as in torch.
    """
    return _alternating(microbatches, microbatches)


def one_forward_one_backward(rank: int, ranks: int, microbatches: int) -> Order:
    """Return a rank's order in 1F1B (PipeDream-Flush).

    Narayanan et al., Memory-Efficient Pipeline-Parallel DNN Training, ICML 2021: a rank warms up with one forward for
    each rank after it, so that its first backward's gradient is on its way when it has run one more, and then holds at
    most ranks - rank microbatches' activations.
    """
    return _alternating(microbatches, ranks - rank - 1)


def early_recompute(rank: int, ranks: int, microbatches: int) -> Order:
    """Return a rank's order in 1F1B with early recomputation.

    Lai et al., Merak: An Efficient Distributed DNN Training Framework with Automated 3D Parallelism, TPDS 2023: a
    forward keeps only its input, and what the backward needs is computed again just before it. The recomputation needs
    nothing from the next rank, so it is a step of its own, ahead of the backward: it runs while the gradient is still
    on its way. On the last rank a backward follows its own forward, whose activations are still there.
    """
    order = one_forward_one_backward(rank, ranks, microbatches)
    if rank == ranks - 1:
        return order
    found: list[Step] = []
    for step in order:
        if step.instruction is _BACKWARD:
            found.append(Step(_RECOMPUTE, step.microbatch))
        found.append(step)
    return tuple(found)


def _alternating(microbatches: int, ahead: int) -> Order:
    """Some forwards ahead, then one forward and one backward in turn, then the backwards that are left."""
    ahead = min(ahead, microbatches)
    found = [Step(_FORWARD, index) for index in range(ahead)]
    for index in range(microbatches - ahead):
        found.append(Step(_FORWARD, ahead + index))
        found.append(Step(_BACKWARD, index))
    found.extend(Step(_BACKWARD, index) for index in range(microbatches - ahead, microbatches))
    return tuple(found)
