"""A small GPT over characters, cut into pipeline stages."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

WIDTH, HEADS, LAYERS, LENGTH = 64, 4, 8, 32
CHARACTERS = 128


class Stage(nn.Module):
    """The layers of one stage; the first embeds characters, the last predicts the next ones."""

    def __init__(self, stage: int, stages: int) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.characters = nn.Embedding(CHARACTERS, WIDTH) if stage == 0 else None
        self.places = nn.Embedding(LENGTH, WIDTH) if stage == 0 else None
        first, last = stage * LAYERS // stages, (stage + 1) * LAYERS // stages
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(first, last)
        )
        self.head = nn.Linear(WIDTH, CHARACTERS) if stage == stages - 1 else None
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the next stage wants, or the predictions."""
        if self.characters is not None and self.places is not None:
            hidden = self.characters(hidden) + self.places(torch.arange(LENGTH))
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        return hidden if self.head is None else self.head(hidden)


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of predictions."""
    return nn.functional.cross_entropy(output.reshape(-1, CHARACTERS), target.reshape(-1))


class Text:
    """What is learnt: this folder's own source, in batches that every rank draws alike."""

    def __init__(self, pipeline: int) -> None:
        text = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
        self._data = torch.tensor([min(ord(each), CHARACTERS - 1) for each in text])
        self._random = torch.Generator().manual_seed(pipeline)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return characters and those that follow them."""
        starts = torch.randint(len(self._data) - LENGTH - 1, (size,), generator=self._random)
        rows = torch.stack([self._data[start : start + LENGTH + 1] for start in starts])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
