"""One rank of a DeepSpeed pipeline. What Perseus needs is the line with ``attach``.

Run on CPU by this project's tests (two ranks, gloo, ``DS_ACCELERATOR=cpu``), on no GPU yet. The operator sets
PERSEUS_RANK and the shape in the training pods; on one machine: PERSEUS_RANK=0 PERSEUS_STAGES=2 ... python train.py
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import deepspeed
import perseus_trainer
import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from perseus_trainer.adapters import deepspeed as perseus_deepspeed
from torch import nn

WIDTH, HEADS, LAYERS, LENGTH, WORDS, SAMPLES = 64, 4, 4, 32, 128, 2


class Layer(nn.TransformerEncoderLayer):
    """One layer of the model."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.reshape(-1, WORDS), target.reshape(-1))


def counting() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of numbers that grow by one: what follows is easy to learn."""
    generator = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(WORDS, (SAMPLES, 1), generator=generator) + torch.arange(LENGTH + 1)
        yield rows[:, :-1] % WORDS, rows[:, 1:] % WORDS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=20)
    iterations = parser.parse_args().iterations
    rank, stages, pipelines = (int(os.environ[f"PERSEUS_{name}"]) for name in ("RANK", "STAGES", "PIPELINES"))
    microbatches, ranks = int(os.environ["PERSEUS_MICROBATCHES"]), stages * pipelines
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
    address = f"tcp://{os.environ['PERSEUS_COORDINATOR']}:{os.environ.get('MASTER_PORT', '29500')}"
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, init_method=address, rank=rank, world_size=ranks, auto_mpi_discovery=False)
    module = PipelineModule(
        layers=[
            LayerSpec(nn.Embedding, WORDS, WIDTH),
            *(LayerSpec(Layer) for _ in range(LAYERS)),
            LayerSpec(nn.Linear, WIDTH, WORDS),
        ],
        num_stages=stages,
        loss_fn=loss,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.Adam(module.parameters(), lr=1e-2),
        config={"train_micro_batch_size_per_gpu": SAMPLES, "gradient_accumulation_steps": microbatches},
    )

    session = perseus_trainer.connect()
    perseus_deepspeed.attach(engine, session)  # The one line.

    batches = counting()
    for index in range(iterations):
        value = float(engine.train_batch(batches))
        if rank == ranks - 1:
            print(f"iteration {index}: loss {value:.3f}", flush=True)
    session.close()


if __name__ == "__main__":
    main()
