"""Real training processes with two chunks on each rank under the real agent: seen, planned, followed by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agent_process import eventually
from perseus_api.instructions import Instruction
from perseus_api.job import PerseusJobSpec
from perseus_api.orders import PipelineOrders
from perseus_api.plan import Plan
from perseus_api.schedules import JobSchedule, Schedule
from perseus_operator.planning import Stragglers, make_plan
from perseus_operator.profiling.sweeping import SweepSettings
from perseus_operator.recording import orders_of
from perseus_planner import Order, Pipeline, Step, frontier
from perseus_planner.recorded import recorded_pipeline
from perseus_simulator.node import SimulatedGpu
from perseus_simulator.testing import SPLIT, WHOLE, example_profile

from benchmarks.profiling.rig import JOB, Rig, running_job

SECONDS = 60.0


def planned(rig: Rig, truth: Pipeline, generation: int, first: int) -> Plan:
    """The plan of minimum energy, in which the chunks' clocks differ most."""
    instructions = SPLIT if truth.schedule is Schedule.ZBV else WHOLE
    made = frontier(example_profile(4, 0.04, instructions), truth, plans=10)
    parallelism = {"stages": 2, "pipelines": 1, "microbatches": truth.microbatches, "chunks": truth.chunks}
    named = JobSchedule.RECORDED if truth.schedule is Schedule.CUSTOM else truth.schedule
    spec = PerseusJobSpec.parse(
        {"parallelism": parallelism, "schedule": named.value, "template": {},
         "objective": {"type": "MinimumEnergy"}}
    )  # fmt: skip
    return make_plan(JOB, spec, made, Stragglers(), generation, first)


def ranks(rig: Rig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rig.agent.counters()["report"]["ranks"]
    return found


def are_following(rig: Rig) -> bool:
    """Whether all ranks run the first plan."""
    return all(each["state"] == "following" and each["generation"]["active"] == 1 for each in ranks(rig))


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

        eventually(lambda: are_following(rig), "the plan is followed", SECONDS)
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
        assert all("of chunk 0 came where that of chunk 1" in each.mismatch for each in rig.reports())


def one_at_a_time(microbatches: int) -> tuple[Order, ...]:
    """A schedule without a name: each microbatch through the whole model and back, then the next."""
    turn = ((Instruction.FORWARD, 0), (Instruction.FORWARD, 1), (Instruction.BACKWARD, 1), (Instruction.BACKWARD, 0))
    order = tuple(Step(each, microbatch, chunk) for microbatch in range(microbatches) for each, chunk in turn)
    return order, order


@pytest.mark.parametrize("v_shape", [False, True])
def test_an_order_without_a_name_is_seen_by_the_agent_and_its_plan_is_followed(
    v_shape: bool, simulator_library: Path, tmp_path: Path
) -> None:
    unnamed = Pipeline(2, 3, Schedule.CUSTOM, chunks=2, orders_given=one_at_a_time(3), v_shape=v_shape)
    with running_job(tmp_path, example_profile(4, 0.04), unnamed) as rig:
        found: list[PipelineOrders] = []

        def is_recorded() -> bool:
            seen = orders_of(rig.reports(orders=True), 2)
            found.extend([seen] if isinstance(seen, PipelineOrders) else [])
            return bool(found)

        eventually(is_recorded, "the order is recorded", SECONDS)
        assert all(each.order is None for each in rig.reports()), "only who asks is told"
        recorded = recorded_pipeline(found[0])
        assert recorded == unnamed, "nobody but the ranks said what they run"
        rig.push(planned(rig, recorded, 1, 1))
        eventually(lambda: are_following(rig), "the plan is followed", SECONDS)


def test_chunks_are_measured_in_the_job_against_the_devices_truth(simulator_library: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(2, 4, Schedule.INTERLEAVED_1F1B, chunks=2)
    settings = SweepSettings(bound=1e3, seconds=3.0, only=(1410, 1200, 1005))
    with running_job(tmp_path, example_profile(4, 0.04), pipeline) as rig:
        found = rig.sweep(settings, "chunks")
        assert set(found.measured.rows) == {1410, 1200, 1005}
        for clock, rows in found.measured.rows.items():
            assert set(rows) == {(stage, each) for stage in range(4) for each in WHOLE}
            for (stage, instruction), row in rows.items():
                expected = rig.node.expected(stage, instruction, clock)
                assert (row.time_seconds, row.energy_joules) == pytest.approx(expected, rel=0.03)
