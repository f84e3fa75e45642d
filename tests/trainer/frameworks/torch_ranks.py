"""The ranks of a pipeline with every schedule class, without and with hooks; what each saw goes to a file.

Run as a process by test_torch_pipelining.py: torch_ranks.py FOLDER, with the agent's socket in the folder.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import perseus_trainer
import torch
import torch.distributed as dist
from perseus_trainer import Rank, order_document
from perseus_trainer.adapters import torch_pipelining

sys.path.insert(0, str(Path(__file__).parent))

from ranks import run_ranks
from torch_model import RANKS, SCHEDULES, make, step

ITERATIONS = 2
COMPUTATION = re.compile(r"(\d+)([FBIW])(\d+)")


def flattened(actions: list[Any]) -> list[list[Any]]:
    """A rank's list of actions as stage, letter and microbatch, without idle slots and what is no computation."""
    found = []
    for action in actions:
        for each in getattr(action, "sub_actions", None) or [action]:
            told = COMPUTATION.fullmatch(str(each))
            if told:
                found.append([int(told[1]), told[2], int(told[3])])
    return found


def note_losses(schedule: Any) -> list[int]:
    """Return the moments at which losses are computed, as they come."""
    moments: list[int] = []
    compute = schedule._loss_fn

    def loss(*arguments: Any) -> Any:
        moments.append(time.monotonic_ns())
        return compute(*arguments)

    schedule._loss_fn = loss
    return moments


def train(name: str, rank: int, session: perseus_trainer.Session | None) -> dict[str, Any]:
    schedule, stages = make(name, rank)
    attached, losses_at = None, note_losses(schedule)
    if session is not None:
        attached = torch_pipelining.attach(schedule, session)
        assert torch_pipelining.attach(schedule, session) is attached
    losses = [step(schedule, stages, iteration) for iteration in range(ITERATIONS)]
    gradients = [
        parameter.grad.double().sum().item().hex()
        for stage in stages
        for parameter in stage.parameters()
        if parameter.grad is not None
    ]
    found: dict[str, Any] = {"losses": losses, "gradients": gradients}
    if session is None or attached is None:
        return found
    indices = sorted(stage.stage_index for stage in attached._stages)
    found["order"] = [
        [indices[told.chunk], told.instruction.code, told.microbatch] for told in session.recorded_order()
    ]
    found["losses_at"] = list(losses_at)
    found["own_order"] = flattened(schedule.pipeline_order[rank])
    found["v_shape"] = attached.v_shape
    orders = attached.recorded_orders()
    if rank == 0:
        found["document"] = order_document(orders)
    if name == "GPipe":  # torch's own eval fails with other classes once they have trained.
        with torch.no_grad():
            step(schedule, stages, ITERATIONS, run="eval")
    attached.detach()
    found["after_detach"] = step(schedule, stages, ITERATIONS)
    return found


def main(rank: int) -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    session = perseus_trainer.connect(Rank("research", "gpt", 0, rank, 0, f"GPU-{rank}"), str(folder / "agent.sock"))
    deadline = time.monotonic() + 60
    while not session.connected and time.monotonic() < deadline:
        time.sleep(0.01)
    found = {name: {"plain": train(name, rank, None), "hooked": train(name, rank, session)} for name in SCHEDULES}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    session.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_ranks(RANKS, main)
