"""One rank of a GPT pipeline with torch.distributed.pipelining. What Perseus needs is the line with ``attach``.

The operator sets PERSEUS_RANK and the shape in the training pods; run.py does it for four processes on one machine.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import perseus_trainer
import torch
import torch.distributed as dist
from model import Stage, Text, loss
from perseus_trainer.adapters import torch_pipelining
from simulated import slowed
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

SAMPLES = 2  # of a microbatch


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--order", type=Path, help="write the order that ran to this file, for the planner")
    arguments = parser.parse_args()

    rank, stages, pipelines = (int(os.environ[f"PERSEUS_{name}"]) for name in ("RANK", "STAGES", "PIPELINES"))
    microbatches = int(os.environ["PERSEUS_MICROBATCHES"])
    pipeline, stage = divmod(rank, stages)
    torch.set_num_threads(1)
    address = f"tcp://{os.environ['PERSEUS_COORDINATOR']}:{os.environ.get('MASTER_PORT', '29500')}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=stages * pipelines)
    # Every process makes every group, and keeps its own.
    lines = [dist.new_group(range(each * stages, (each + 1) * stages)) for each in range(pipelines)]
    replicas = [dist.new_group(range(each, stages * pipelines, stages)) for each in range(stages)]

    module = slowed(Stage(stage, stages), stage)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3)
    made = PipelineStage(module, stage, stages, torch.device("cpu"), group=lines[pipeline])
    schedule = get_schedule_class(os.environ.get("PERSEUS_SCHEDULE", "1F1B"))(made, microbatches, loss_fn=loss)

    session = perseus_trainer.connect(record=arguments.order is not None)
    attached = torch_pipelining.attach(schedule, session)  # The one line.

    text = Text(pipeline)
    for index in range(arguments.iterations):
        begin = time.monotonic()
        characters, target = text.batch(SAMPLES * microbatches)
        losses: list[torch.Tensor] = []
        # Around the reduction and the optimiser too; without it an iteration is the schedule's step.
        with session.iteration(index):
            if stage == 0:
                schedule.step(characters)
            elif stage == stages - 1:
                schedule.step(target=target, losses=losses)
            else:
                schedule.step()
            for parameter in module.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=replicas[stage])
                    parameter.grad /= pipelines
            optimiser.step()
            optimiser.zero_grad()
        if losses:
            mean = torch.stack(losses).mean().item()
            print(f"iteration {index}: loss {mean:.3f}, {time.monotonic() - begin:.2f} s", flush=True)
    if arguments.order is not None:
        orders = attached.recorded_orders()
        if rank == 0:
            arguments.order.write_text(perseus_trainer.order_document(orders) + "\n")
    session.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
