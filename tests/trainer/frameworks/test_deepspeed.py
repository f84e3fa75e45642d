"""The adapter in DeepSpeed's real pipeline engine: two gloo processes on CPU train a small transformer."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, TrainSchedule
from perseus_api.instructions import Instruction
from perseus_planner import Pipeline
from perseus_planner.given import load_orders
from perseus_trainer import Recorded, order_document
from perseus_trainer.adapters import AdapterProblem
from perseus_trainer.adapters import deepspeed as adapter

from frameworks.programs import program, results

STAGES, MICROBATCHES = 2, 4


pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    with program("deepspeed_ranks.py", folder) as process:
        return results(process, folder, STAGES)


def test_the_recorded_order_is_the_engines_own(ranks: list[dict[str, Any]]) -> None:
    for stage, found in enumerate(ranks):
        own = []
        for commands in TrainSchedule(MICROBATCHES, STAGES, stage):
            own += ["forward" for each in commands if isinstance(each, ForwardPass)]
            own += ["backward" for each in commands if isinstance(each, BackwardPass)]
        assert [instruction for instruction, *_ in found["hooked"]["order"]] == own
        for kind in ("forward", "backward"):
            microbatches = [each for instruction, each, _ in found["hooked"]["order"] if instruction == kind]
            assert microbatches == list(range(MICROBATCHES))


def test_losses_are_the_same_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["hooked"]["losses"] == found["plain"]["losses"]
        assert len(set(found["plain"]["losses"])) > 1, "it trains"


def test_the_planner_loads_an_order_that_is_none_of_its_own(ranks: list[dict[str, Any]]) -> None:
    orders = [
        tuple(Recorded(Instruction(name), microbatch, chunk) for name, microbatch, chunk in found["hooked"]["order"])
        for found in ranks
    ]
    pipeline = Pipeline.of_orders(load_orders(order_document(orders)))
    assert (pipeline.stages, pipeline.microbatches) == (STAGES, MICROBATCHES)


def test_what_is_no_pipeline_engine_is_refused() -> None:
    with pytest.raises(AdapterProblem, match="object is no PipelineEngine"):
        adapter.attach(object())
