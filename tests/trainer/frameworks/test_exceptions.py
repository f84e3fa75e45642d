"""A step that an exception left, in real torch with one rank: its iteration is broken, the next one whole."""

from __future__ import annotations

from collections.abc import Iterator

import perseus_trainer
import pytest
import torch
import torch.distributed as dist
from agent_side import AgentSide, eventually, read
from perseus_api.messages import BoundaryKind
from perseus_trainer import Rank
from perseus_trainer.adapters import torch_pipelining
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

pytestmark = pytest.mark.frameworks
BEGIN, END, BROKEN = BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END, BoundaryKind.ITERATION_BROKEN
STARTS, STOPS = BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_bad_batch_breaks_its_own_iteration_alone(agent_side: AgentSide, rank: Rank) -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if bool(target.isnan().any()):
            raise ValueError("a bad batch")
        return nn.functional.mse_loss(output, target)

    schedule = ScheduleGPipe(PipelineStage(nn.Linear(4, 4), 0, 1, torch.device("cpu")), 2, loss_fn=loss)
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    torch_pipelining.attach(schedule, session)
    words, target = torch.ones(2, 4), torch.ones(2, 4)
    bad = target.clone()
    bad[1] = torch.nan  # of the second microbatch
    with pytest.raises(ValueError, match="a bad batch"):
        schedule.step(words, target=bad)
    assert session.recorded_order() == ()
    schedule.step(words, target=target)
    told = [read(connection) for _ in range(5 + 10)]
    kinds = [each.kind for each in told if each is not None]
    assert kinds == [BEGIN, STARTS, STOPS, STARTS, BROKEN, BEGIN, *([STARTS, STOPS] * 4), END]
    assert "".join(each.instruction.code for each in session.recorded_order()) == "FFBB"
    session.close()
