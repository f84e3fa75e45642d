"""DeepSpeed's real pipeline engine on CPU, its ranks without and with hooks; what each saw goes to a file.

Run as a process by test_deepspeed.py: deepspeed_ranks.py FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import perseus_trainer
import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from perseus_trainer.adapters import deepspeed as adapter
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from ranks import run_ranks
from torch_model import BATCH, WIDTH, WORDS, batch, loss

STAGES, MICROBATCHES, ITERATIONS = 2, 4, 3


class Layer(nn.TransformerEncoderLayer):
    """A transformer's layer of fixed weights."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for iteration in range(ITERATIONS + 2):
        words, target = batch(iteration, MICROBATCHES)
        yield from zip(words.split(BATCH), target.split(BATCH), strict=True)


def train(session: perseus_trainer.Session | None) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = [
        LayerSpec(nn.Embedding, WORDS, WIDTH),
        *(LayerSpec(Layer, seed) for seed in range(4)),
        LayerSpec(nn.Linear, WIDTH, WORDS),
    ]
    module = PipelineModule(layers=layers, num_stages=STAGES, loss_fn=loss, partition_method="uniform", base_seed=7)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": BATCH,
            "gradient_accumulation_steps": MICROBATCHES,
            "train_batch_size": BATCH * MICROBATCHES,
        },
    )
    attached = None
    if session is not None:
        attached = adapter.attach(engine, session)
        assert adapter.attach(engine, session) is attached
    data = batches()
    losses = [float(engine.train_batch(data)).hex() for _ in range(ITERATIONS)]
    order = []
    if session is not None and attached is not None:
        engine.eval_batch(data)
        order = [list(step) for step in session.recorded_order()]
        attached.detach()
        engine.train_batch(data)
        assert session.iteration_index == ITERATIONS - 1
    return {"losses": losses, "order": order}


def main(rank: int) -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    # An optimisation of reductions on CPU, which would be compiled for minutes.
    deepspeed.ops.__compatible_ops__ = {}
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(STAGES))
    deepspeed.init_distributed(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=STAGES, auto_mpi_discovery=False
    )
    found = {"plain": train(None), "hooked": train(perseus_trainer.connect(record=True))}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_ranks(STAGES, main)
