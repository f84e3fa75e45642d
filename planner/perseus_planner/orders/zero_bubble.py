"""Zero-bubble schedules: the backward in two parts, of which the second waits for nobody and fills the bubbles.

Qi et al., Zero Bubble Pipeline Parallelism, 2023 (ICLR 2024): the gradient of a chunk's input (`backward_input`) is
what the rank before waits for; the gradient of its weights (`backward_weight`) can run at any time after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

from perseus_api.instructions import Instruction

from perseus_planner.orders.interleaved import Rounds
from perseus_planner.steps import Order, Step

_FORWARD, _INPUT, _WEIGHT = Instruction.FORWARD, Instruction.BACKWARD_INPUT, Instruction.BACKWARD_WEIGHT


def zb_h1(rank: int, ranks: int, microbatches: int, chunks: int = 1) -> Order:
    """Return a rank's order in ZB-H1.

    1F1B's order of forwards and input gradients; the weight gradients stay `rank` microbatches behind. Rank 0 runs each
    at once, the last rank keeps as many as fill the bubble at its end; no rank holds more activations than 1F1B's
    first. With several chunks the rounds are those of interleaved 1F1B.

    Raises:
        ValueError: with several chunks, the microbatches cannot be divided into equal rounds.
    """
    rounds = Rounds(ranks, microbatches, chunks)
    warmup = min(rounds.total, (chunks - 1) * rounds.length + ranks - 1 - rank)
    found = [rounds.forward(index) for index in range(warmup)]
    for index in range(rounds.total):
        if warmup + index < rounds.total:
            found.append(rounds.forward(warmup + index))
        found.append(rounds.backward(index, _INPUT))
        if index >= rank:
            found.append(rounds.backward(index - rank, _WEIGHT))
    found.extend(rounds.backward(index, _WEIGHT) for index in range(max(0, rounds.total - rank), rounds.total))
    return tuple(found)


def zbv(rank: int, ranks: int, microbatches: int) -> Order:
    """Return a rank's order in ZB-V (section 6 of the paper, and Qi et al., Controllable Memory, NeurIPS 2024).

    The first half of the model runs down the ranks in chunk 0, the second half back up in chunk 1: the last virtual
    stage is on rank 0, so a microbatch's backward begins where its forward began. With equal times of all three
    instructions there is no bubble but in filling and draining, and every rank holds what 1F1B's first rank holds.

    The phases need 2 x ranks - 1 microbatches; with fewer, the order is that one without those that do not exist.
    """
    after = ranks - rank
    count = max(microbatches, 2 * ranks - 1)
    both = count - (2 * ranks - rank - 1)  # microbatches whose first forward is in the steady phase
    phases = (
        # Warm up: down the V, then up it in turn, then the first backwards of chunk 1.
        (2 * after - 1, ((_FORWARD, 0),)),
        (rank, ((_FORWARD, 1), (_FORWARD, 0))),
        (after, ((_FORWARD, 1), (_INPUT, 1), (_WEIGHT, 1))),
        # Steady: a whole microbatch in every turn; at its end no forward of chunk 0 is left.
        (both, ((_FORWARD, 0), (_INPUT, 0), (_WEIGHT, 0), (_FORWARD, 1), (_INPUT, 1), (_WEIGHT, 1))),
        (count - ranks - both, ((_INPUT, 0), (_WEIGHT, 0), (_FORWARD, 1), (_INPUT, 1), (_WEIGHT, 1))),
        # Drain: input gradients first, since the ranks before wait for them.
        (rank, ((_INPUT, 0), (_INPUT, 1))),
        (after, ((_INPUT, 0), (_WEIGHT, 0))),
        (rank, ((_WEIGHT, 1),)),
        (rank, ((_WEIGHT, 0),)),
    )
    return tuple(step for step in _numbered(phases) if step.microbatch < microbatches)


def _numbered(phases: tuple[tuple[int, tuple[tuple[Instruction, int], ...]], ...]) -> Iterator[Step]:
    """Each instruction of each chunk takes the microbatches in turn."""
    taken: dict[tuple[Instruction, int], int] = {}
    for times, turn in phases:
        for each in chain.from_iterable(repeat(turn, times)):
            microbatch = taken.get(each, 0)
            taken[each] = microbatch + 1
            yield Step(each[0], microbatch, each[1])
