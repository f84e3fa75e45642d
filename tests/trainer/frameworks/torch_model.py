"""A small transformer, cut into the stages of any schedule of torch.distributed.pipelining. The same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)

WIDTH, WORDS, LENGTH, LAYERS, BATCH = 32, 64, 8, 8, 2
RANKS, MICROBATCHES = 4, 8
SINGLE = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}
MULTI = {
    "LoopedBFS": ScheduleLoopedBFS,
    "Interleaved1F1B": ScheduleInterleaved1F1B,
    "InterleavedZeroBubble": ScheduleInterleavedZeroBubble,
    "ZBVZeroBubble": ScheduleZBVZeroBubble,
    "DualPipeV": ScheduleDualPipeV,
}
V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
SCHEDULES = (*SINGLE, *MULTI)


class Stage(nn.Module):
    """The layers of one stage; the first embeds, the last predicts."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        torch.manual_seed(index)
        self.embedding = nn.Embedding(WORDS, WIDTH) if index == 0 else None
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(LAYERS // count)
        )
        self.head = nn.Linear(WIDTH, WORDS) if index == count - 1 else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.embedding is not None:
            hidden = self.embedding(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden if self.head is None else self.head(hidden)


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.reshape(-1, WORDS), target.reshape(-1))


def make(name: str, rank: int, microbatches: int = MICROBATCHES, around: Callable[[Any], Any] = lambda m: m) -> Any:
    """Return a new schedule of a class with new stages of the same weights, and their modules."""
    if name in SINGLE:
        indices, count = [rank], RANKS
    else:
        count = 2 * RANKS
        indices = [rank, count - 1 - rank if name in V_SHAPED else RANKS + rank]
    modules = [around(Stage(index, count)) for index in indices]
    stages = [
        PipelineStage(module, index, count, torch.device("cpu")) for module, index in zip(modules, indices, strict=True)
    ]
    if name in SINGLE:
        return SINGLE[name](stages[0], microbatches, loss_fn=loss), modules
    return MULTI[name](stages, microbatches, loss_fn=loss), modules


def batch(iteration: int, microbatches: int = MICROBATCHES) -> tuple[torch.Tensor, torch.Tensor]:
    """Return words and the words to predict."""
    generator = torch.Generator().manual_seed(iteration)
    words = torch.randint(0, WORDS, (BATCH * microbatches, LENGTH + 1), generator=generator)
    return words[:, :-1].contiguous(), words[:, 1:].contiguous()


def step(
    schedule: Any, stages: list[Any], iteration: int, microbatches: int = MICROBATCHES, run: str = "step"
) -> list[str]:
    """Run one step; return the losses of the microbatches, as hexadecimal floats, on the last stage's rank."""
    words, target = batch(iteration, microbatches)
    first = any(stage.embedding is not None for stage in stages)
    last = any(stage.head is not None for stage in stages)
    losses: list[torch.Tensor] = []
    getattr(schedule, run)(*([words] if first else []), **({"target": target, "losses": losses} if last else {}))
    return [float(each).hex() for each in losses]
