"""Real training processes with two chunks on each rank under the real agent: the plan's clocks reach each chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agent_process import eventually
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import Plan
from perseus_api.schedules import Schedule
from perseus_operator.planning import Stragglers, make_plan
from perseus_planner import Pipeline, frontier
from perseus_simulator.node import SimulatedGpu
from perseus_simulator.testing import SPLIT, WHOLE, example_profile

from benchmarks.profiling.rig import JOB, Rig, running_job

SECONDS = 60.0


def planned(rig: Rig, truth: Pipeline, generation: int, first: int) -> Plan:
    """The plan of minimum energy, in which the chunks' clocks differ most."""
    instructions = SPLIT if truth.schedule is Schedule.ZBV else WHOLE
    made = frontier(example_profile(4, 0.04, instructions), truth, plans=10)
    parallelism = {"stages": 2, "pipelines": 1, "microbatches": truth.microbatches, "chunks": truth.chunks}
    spec = PerseusJobSpec.parse(
        {"parallelism": parallelism, "schedule": truth.schedule.value, "template": {},
         "objective": {"type": "MinimumEnergy"}}
    )  # fmt: skip
    return make_plan(JOB, spec, made, Stragglers(), generation, first)


def ranks(rig: Rig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rig.agent.counters()["report"]["ranks"]
    return found


@pytest.mark.parametrize("schedule", [Schedule.INTERLEAVED_1F1B, Schedule.ZBV])
def test_a_named_schedule_is_followed_and_another_order_of_chunks_is_seen(
    schedule: Schedule, simulator_library: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline(2, 4, schedule, chunks=2)
    profile = example_profile(4, 0.04, SPLIT if schedule is Schedule.ZBV else WHOLE)
    with running_job(tmp_path, profile, pipeline) as rig:
        eventually(
            lambda: len(rig.reports()) == 2 and min(each.iteration for each in rig.reports()) >= 1, "training", SECONDS
        )
        plan = planned(rig, pipeline, 1, 1)
        rig.push(plan)

        def followed() -> bool:
            return all(each["state"] == "following" and each["generation"]["active"] == 1 for each in ranks(rig))

        eventually(followed, "the plan is followed", SECONDS)
        for gpu, clocks in zip(rig.node.gpus, plan.variants[0].clocks, strict=True):
            wanted = {(clock, clock) for clock in clocks}
            assert len(wanted) > 1, "its chunks run at different clocks"

            def are_set(gpu: SimulatedGpu = gpu, wanted: set[tuple[int, int]] = wanted) -> bool:
                return wanted <= {call.clock_range for call in gpu.clock_calls()}

            eventually(are_set, "every clock of the plan", SECONDS)
        # The same letters, other chunks: a plan for a training that runs its chunks the other way round.
        swapped = tuple(tuple(1 - chunk for chunk in chunks) for chunks in plan.chunks)
        rig.push(plan.model_copy(update={"generation": 2, "chunks": swapped}))
        eventually(lambda: all(each["state"] == "mismatch" for each in ranks(rig)), "the mismatch", SECONDS)
        assert all("of chunk 0 came where that of chunk 1" in each["explanation"] for each in ranks(rig))
