"""The adapter in Megatron-Core's real schedules: four processes, its own point-to-point communication over gloo."""

from __future__ import annotations

from typing import Any

import pytest
from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline
from perseus_planner.given import load_orders
from perseus_trainer import Recorded, order_document

from frameworks.programs import program, results

RANKS, MICROBATCHES, ITERATIONS = 4, 8, 2
PIPELINES = {
    "without_interleaving": Pipeline(RANKS, MICROBATCHES),
    "with_interleaving": Pipeline(RANKS, MICROBATCHES, Schedule.INTERLEAVED_1F1B, chunks=2),
}


pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("megatron")
    with program("megatron_ranks.py", folder) as process:
        return results(process, folder, RANKS)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_recorded_order_is_1f1b(name: str, ranks: list[dict[str, Any]]) -> None:
    orders = [
        tuple(
            Recorded(Instruction(kind), microbatch, chunk) for kind, microbatch, chunk in found[name]["hooked"]["order"]
        )
        for found in ranks
    ]
    assert load_orders(order_document(orders)) == PIPELINES[name].orders()


def test_a_pipeline_of_one_stage_alternates(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        order = [(kind, microbatch) for kind, microbatch, _ in found["no_pipelining"]["hooked"]["order"]]
        assert order == [(kind, each) for each in range(MICROBATCHES) for kind in ("forward", "backward")]


@pytest.mark.parametrize("name", ["no_pipelining", *PIPELINES])
def test_losses_and_gradients_are_the_same_to_the_last_bit(name: str, ranks: list[dict[str, Any]]) -> None:
    losses = []
    for found in ranks:
        plain, hooked = found[name]["plain"], found[name]["hooked"]
        assert (hooked["losses"], hooked["gradients"]) == (plain["losses"], plain["gradients"])
        assert plain["gradients"]
        losses.append([each for iteration in plain["losses"] for each in iteration])
    assert len(losses[-1]) == ITERATIONS * MICROBATCHES, "the last stage has the losses"
