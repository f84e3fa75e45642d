"""One rank of a pipeline with Megatron-Core's schedules. What Perseus needs is the line with ``attach``.

Run by this project's tests on CPU: Megatron-Core's own schedules and point-to-point communication over gloo, with
torch's CUDA calls put aside (tests/trainer/frameworks/on_cpu.py); on no GPU yet. The model is a few layers of torch's,
to keep the example small: a GPTModel of Megatron-Core is passed in the same way. The operator sets PERSEUS_RANK and the
shape in the training pods.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator

import perseus_trainer
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from perseus_trainer.adapters import megatron as perseus_megatron
from torch import nn

WIDTH, HEADS, LENGTH, WORDS, SAMPLES = 64, 4, 32, 128, 2
Batch = tuple[torch.Tensor, torch.Tensor]


class Stage(nn.Module):
    """One stage, as Megatron-Core wants a model: sequence first, its input set from outside."""

    def __init__(self, stage: int, stages: int, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.model_type = config, ModelType.encoder_or_decoder
        self.embedding = nn.Embedding(WORDS, WIDTH) if stage == 0 else None
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0)
        self.head = nn.Linear(WIDTH, WORDS) if stage == stages - 1 else None
        self._input: torch.Tensor | None = None

    def set_input_tensor(self, tensors: list[torch.Tensor]) -> None:
        """Take what the stage before has sent."""
        self._input = tensors[0]

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return what the next stage wants, or the predictions."""
        hidden = self.layer(self.embedding(words.t()) if self.embedding is not None else self._input)
        return hidden if self.head is None else self.head(hidden)


def counting(device: torch.device) -> Iterator[Batch]:
    """Rows of numbers that grow by one: what follows is easy to learn."""
    generator = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(WORDS, (SAMPLES, 1), generator=generator) + torch.arange(LENGTH + 1)
        yield (rows[:, :-1] % WORDS).to(device), (rows[:, 1:] % WORDS).to(device)


def forward_step(batches: Iterator[Batch], model: nn.Module) -> tuple[torch.Tensor, Callable[..., object]]:
    words, target = next(batches)

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        value = nn.functional.cross_entropy(output.reshape(-1, WORDS), target.t().reshape(-1))
        return value, {"loss": value.detach().item()}

    return model(words), loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=20)
    iterations = parser.parse_args().iterations
    rank, stages, pipelines = (int(os.environ[f"PERSEUS_{name}"]) for name in ("RANK", "STAGES", "PIPELINES"))
    if pipelines != 1:
        raise SystemExit("this example trains one pipeline: set parallelism.pipelines to 1")
    address = f"tcp://{os.environ['PERSEUS_COORDINATOR']}:{os.environ.get('MASTER_PORT', '29500')}"
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=address, rank=rank, world_size=stages)
    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=stages)
    config = TransformerConfig(
        num_layers=stages,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        pipeline_model_parallel_size=stages,
        pipeline_dtype=torch.float32,
    )
    device = torch.device("cuda" if on_gpu else "cpu")
    model = Stage(rank, stages, config).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    session = perseus_trainer.connect()
    perseus_megatron.attach(session)  # The one line, before get_forward_backward_func.

    run, batches = get_forward_backward_func(), counting(device)
    for index in range(iterations):
        with session.iteration(index):  # Around the optimiser too.
            stored = run(
                forward_step_func=forward_step,
                data_iterator=batches,
                model=model,
                num_microbatches=int(os.environ["PERSEUS_MICROBATCHES"]),
                seq_length=LENGTH,
                micro_batch_size=SAMPLES,
            )
            optimiser.step()
            optimiser.zero_grad()
        if rank == stages - 1:
            mean = sum(each["loss"] for each in stored) / len(stored)
            print(f"iteration {index}: loss {mean:.3f}", flush=True)
    session.close()
    dist.barrier()


if __name__ == "__main__":
    main()
