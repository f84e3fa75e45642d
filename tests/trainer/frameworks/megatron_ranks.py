"""Megatron-Core's real schedules and its real point-to-point communication, over gloo.

Megatron-Core trains on CUDA only; `on_cpu` says what is put in its place.

Run as a process by test_megatron.py: megatron_ranks.py FOLDER; what each rank saw goes to a file there.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import perseus_trainer
import torch
import torch.distributed as dist
from perseus_trainer.adapters import megatron as adapter
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from on_cpu import OnCpu
from ranks import run_ranks
from torch_model import BATCH, LENGTH, WIDTH, WORDS, batch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_config import TransformerConfig

RANKS, MICROBATCHES, ITERATIONS = 4, 8, 2
SHAPES = {"no_pipelining": (1, None), "without_interleaving": (RANKS, None), "with_interleaving": (RANKS, 2)}


class Chunk(nn.Module):
    """The layers of one model chunk, as Megatron-Core wants a model: sequence first, its input set from outside."""

    def __init__(self, index: int, count: int, config: TransformerConfig) -> None:
        super().__init__()
        torch.manual_seed(index)
        self.config, self.model_type = config, ModelType.encoder_or_decoder
        self.first, self.last = index == 0, index == count - 1
        self.embedding = nn.Embedding(WORDS, WIDTH) if self.first else None
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0)
        self.head = nn.Linear(WIDTH, WORDS) if self.last else None
        self._input: torch.Tensor | None = None

    def set_input_tensor(self, tensors: list[torch.Tensor]) -> None:
        self._input = tensors[0]

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(self.embedding(words.t()) if self.embedding is not None else self._input)
        return hidden if self.head is None else self.head(hidden)


def batches(iteration: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    words, target = batch(iteration, MICROBATCHES)
    return iter(list(zip(words.split(BATCH), target.split(BATCH), strict=True)))


def forward_step(data: Iterator[tuple[torch.Tensor, torch.Tensor]], model: Chunk) -> tuple[torch.Tensor, Any]:
    words, target = next(data)

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, str]]:
        value = nn.functional.cross_entropy(output.reshape(-1, WORDS), target.t().reshape(-1))
        return value, {"loss": float(value).hex()}

    return model(words), loss


def train(stages: int, chunks: int | None, session: perseus_trainer.Session | None) -> dict[str, Any]:
    config = TransformerConfig(
        num_layers=stages * (chunks or 1),
        hidden_size=WIDTH,
        num_attention_heads=4,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=chunks,
        pipeline_dtype=torch.float32,
        batch_p2p_comm=True,
    )
    rank = parallel_state.get_pipeline_model_parallel_rank()
    count = stages * (chunks or 1)
    models = [Chunk(chunk * stages + rank, count, config) for chunk in range(chunks or 1)]
    attached = adapter.attach(session) if session is not None else None

    def step(iteration: int, forward_only: bool = False) -> list[str]:
        stored = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[batches(iteration) for _ in models],
            model=models,
            num_microbatches=MICROBATCHES,
            seq_length=LENGTH,
            micro_batch_size=BATCH,
            forward_only=forward_only,
        )
        return [each["loss"] for each in stored]

    losses = [step(iteration) for iteration in range(ITERATIONS)]
    gradients = [
        each.grad.double().sum().item().hex()
        for model in models
        for each in model.parameters()
        if each.grad is not None
    ]
    order: list[Any] = []
    if session is not None and attached is not None:
        before = session.iteration_index
        step(0, forward_only=True)
        order = [list(told) for told in session.recorded_order()]
        attached.detach()
        step(0)
        assert session.iteration_index == before, "neither evaluation nor a detached schedule is told"
    return {"losses": losses, "gradients": gradients, "order": order}


def main(rank: int) -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    session = perseus_trainer.connect(record=True)
    found = {}
    with OnCpu():
        for name, (stages, chunks) in SHAPES.items():
            parallel_state.initialize_model_parallel(
                pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=chunks
            )
            found[name] = {"plain": train(stages, chunks, None), "hooked": train(stages, chunks, session)}
            parallel_state.destroy_model_parallel()
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    run_ranks(RANKS, main)
