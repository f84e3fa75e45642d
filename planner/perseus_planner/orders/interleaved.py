"""Interleaved 1F1B: several model chunks on each rank, so that the pipeline fills in smaller steps.

Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM, SC '21, section 2.2.
The model is cut into ranks x chunks pieces and dealt out in turn. A round of microbatches runs through chunk 0, then
chunk 1, and so on; then the next round. The warm-up is longer than in 1F1B, the bubble shorter by the number of chunks.

A round is as many microbatches as there are ranks. The paper wants the microbatches to be a multiple of that; as in
torch, a round may also be a little longer, so long as all rounds are equal.
"""

from __future__ import annotations

from perseus_api.instructions import Instruction

from perseus_planner.steps import Order, Step


class Rounds:
    """In which order a rank's microbatches pass through its chunks; forwards upwards, backwards downwards.

    Attributes:
        length: microbatches of a round.
        total: passes in an iteration: microbatches x chunks.
    """

    def __init__(self, ranks: int, microbatches: int, chunks: int) -> None:
        """Divide the microbatches into rounds.

        Raises:
            ValueError: equal rounds are not possible.
        """
        rounds = max(1, microbatches // ranks)
        if chunks > 1 and microbatches % rounds:
            raise ValueError(
                f"{microbatches} microbatches cannot run in {rounds} equal rounds through {chunks} chunks on {ranks} "
                f"ranks: use a multiple of {ranks} microbatches"
            )
        self.length = microbatches // rounds
        self.total = microbatches * chunks
        self._chunks = chunks

    def forward(self, index: int) -> Step:
        """Return the forward that comes at an index among a rank's forwards."""
        return Step(Instruction.FORWARD, *self._pass(index))

    def backward(self, index: int, instruction: Instruction) -> Step:
        """Return the backward of a kind that comes at an index among a rank's backwards of that kind."""
        microbatch, chunk = self._pass(index)
        return Step(instruction, microbatch, self._chunks - 1 - chunk)

    def _pass(self, index: int) -> tuple[int, int]:
        """Microbatch, and how many chunks it has behind it."""
        if self._chunks == 1:
            return index, 0
        whole, place = divmod(index, self.length * self._chunks)
        chunk, within = divmod(place, self.length)
        return whole * self.length + within, chunk


def interleaved(rank: int, ranks: int, microbatches: int, chunks: int) -> Order:
    """Return a rank's order in interleaved 1F1B.

    The warm-up is a round for each chunk but the last, and two forwards for each rank after this one: a gradient needs
    that long to come back when every other step is a forward.

    Raises:
        ValueError: the microbatches cannot be divided into equal rounds.
    """
    rounds = Rounds(ranks, microbatches, chunks)
    warmup = min(rounds.total, (chunks - 1) * rounds.length + 2 * (ranks - 1 - rank))
    found = [rounds.forward(index) for index in range(warmup)]
    for index in range(rounds.total):
        if warmup + index < rounds.total:
            found.append(rounds.forward(warmup + index))
        found.append(rounds.backward(index, Instruction.BACKWARD))
    return tuple(found)
