"""Fixed instructions in the plan, and pipelines of different GPUs: times and energies as a player measures them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_api.frontier import Frontier
from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile, StageGpu
from perseus_api.schedules import Schedule
from perseus_planner import Order, Pipeline, PlanningError, Step, frontier
from perseus_planner.costs import UNBOUNDED, cost_table
from perseus_planner.dag import build_dag
from perseus_planner.fixed import transferring, with_fixed

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, profile_for, random_profile, shaped
from player import play

LOAD, P2P, ALLREDUCE, OPTIMIZER = (
    Instruction.LOAD,
    Instruction.P2P,
    Instruction.ALLREDUCE,
    Instruction.OPTIMIZER,
)  # fmt: skip


def with_measured(profile: Profile, fixed: dict[tuple[int, Instruction], tuple[float, float]]) -> Profile:
    added = {key: (Measurement(0, seconds, joules),) for key, (seconds, joules) in fixed.items()}
    return Profile(profile.header, {**profile.measurements, **added})


def with_gpus(profile: Profile, *watts: float) -> Profile:
    gpus = tuple(StageGpu(gpu_model=f"GPU {each:g} W", blocking_power_watts=each) for each in watts)
    return Profile(profile.header.model_copy(update={"stage_gpus": gpus}), profile.measurements)


def orders_of(found: Frontier) -> tuple[Order, ...]:
    chunks = found.chunks or tuple((0,) * len(order) for order in found.order)
    return tuple(
        tuple(Step(Instruction.from_code(letter), *rest) for letter, *rest in zip(*columns, strict=True))
        for columns in zip(found.order, found.microbatches, chunks, strict=True)
    )


@given(
    st.integers(0, 1000),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(GENERATED),
    st.sets(st.sampled_from([LOAD, P2P, ALLREDUCE, OPTIMIZER])),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_all_numbers_are_true_with_fixed_instructions_and_mixed_gpus(
    seed: int, stages: int, microbatches: int, schedule: Schedule, kinds: set[Instruction], mixed: bool
) -> None:
    pipeline = shaped(stages, microbatches, schedule)
    random = np.random.default_rng(seed)
    fixed = {
        (stage, kind): (float(random.uniform(0.001, 0.1)), float(random.uniform(0.1, 20)))
        for kind in sorted(kinds)
        for stage in range(pipeline.virtual_stages)
        if random.random() < 0.6
    }
    profile = with_measured(profile_for(pipeline, seed, clocks=4), fixed)
    if mixed:
        profile = with_gpus(profile, *random.uniform(30, 150, size=stages).tolist())
    found = frontier(profile, pipeline, plans=8, search_steps=2_000)
    for each in (found.fastest, *found.plans):
        seconds, joules = play(profile, pipeline, orders_of(found), each.clocks)
        assert each.iteration_seconds == pytest.approx(seconds, rel=1e-6)
        assert each.iteration_joules == pytest.approx(joules, rel=1e-5, abs=1e-5)
        assert each.iteration_joules >= each.bound_joules * (1 - 1e-6) - 1e-6
    assert sum(found.fastest_stage_joules) == pytest.approx(found.fastest.iteration_joules, rel=1e-6)
    assert Frontier.decode(found.encode()) == found


def test_fixed_instructions_stand_where_they_run() -> None:
    profile = with_measured(
        random_profile(1, 2, 3),
        {(0, LOAD): (0.01, 1.0), (1, ALLREDUCE): (0.1, 9.0), (1, OPTIMIZER): (0.1, 5.0), (0, P2P): (0.01, 1.0)},
    )
    found = frontier(profile, Pipeline(2, 3), plans=3)
    assert found.order == ("LFLFBLFBB", "FBFBFBAO")
    assert found.microbatches == ((0, 0, 1, 1, 0, 2, 2, 1, 2), (0, 0, 1, 1, 2, 2, 0, 0))
    for each in found.plans:
        assert [clock for clock in each.clocks[0] if clock == 0] == [0, 0, 0]
        assert each.clocks[1][-2:] == (0, 0)


def test_each_chunk_loads_reduces_and_steps_for_itself() -> None:
    pipeline = Pipeline(1, 1, Schedule.ZBV, chunks=2)
    profile = with_measured(
        profile_for(pipeline, 1, 3),
        {(stage, kind): (0.01, 1.0) for stage in (0, 1) for kind in (ALLREDUCE, OPTIMIZER)} | {(1, LOAD): (0.01, 1.0)},
    )
    (order,) = with_fixed(pipeline.orders(), pipeline, profile)
    assert "".join(f"{step.instruction.code}{step.chunk}" for step in order) == "F0L1F1I1W1I0W0A0A1O0O1"


def test_a_transfer_is_a_node_on_each_edge_to_another_rank_and_in_no_order() -> None:
    pipeline = Pipeline(2, 3, Schedule.ZBV, chunks=2)
    profile = with_measured(profile_for(pipeline, 1, 3), {(stage, P2P): (0.01, 1.0) for stage in range(4)})
    dag = build_dag(pipeline.orders(), pipeline, transferring(pipeline, profile))
    beside = dag.position < 0
    kinds = [dag.keys[kind] for kind in dag.kind[beside]]
    # Virtual stages 1 and 2 share rank 1: nothing is sent at the turn of the V.
    assert sorted(set(kinds)) == [(0, P2P), (1, P2P), (2, P2P), (3, P2P)]
    assert len(kinds) == 3 * 4  # microbatches x (0 -> 1, 1 -> 0, 2 -> 3, 3 -> 2)
    assert [dag.stage[beside][kinds.index((stage, P2P))] for stage in range(4)] == [0, 1, 1, 0]


def test_a_transfer_delays_who_waits_and_lets_the_sender_go_on() -> None:
    plain = random_profile(1, 2, 3, noise=0)
    delayed = with_measured(plain, {(0, P2P): (10.0, 7.0)})
    before, after = (frontier(each, Pipeline(2, 4), plans=2).fastest for each in (plain, delayed))
    # All four are under way at once, but for 1F1B's one forward ahead: not forty seconds.
    assert 10.0 < after.iteration_seconds - before.iteration_seconds < 31.0
    waiting = 2 * plain.header.blocking_power_watts * (after.iteration_seconds - before.iteration_seconds)
    assert after.iteration_joules == pytest.approx(before.iteration_joules + 4 * 7.0 + waiting, rel=1e-6)


def test_a_fixed_instruction_is_one_option_at_no_clock() -> None:
    profile = with_measured(random_profile(1, 1, 3), {(0, OPTIMIZER): (0.5, 100.0), (0, P2P): (0.5, 100.0)})
    watts = profile.header.blocking_power_watts
    costs = cost_table(profile, [(0, OPTIMIZER), (0, P2P)], ranks=[0, 0], beside=[False, True])
    (in_order,), (beside,) = costs.options
    assert (in_order.clock_megahertz, in_order.picoseconds) == (0, 500_000_000_000)
    assert (in_order.cost_joules, beside.cost_joules) == pytest.approx((100.0 - watts * 0.5, 100.0))
    assert costs.hulls[0].lengths == (500_000_000_000,)
    assert costs.hulls[0].capacities == (UNBOUNDED,)


def test_what_a_given_order_names_stays_where_it_is() -> None:
    forward, backward = Instruction.FORWARD, Instruction.BACKWARD
    given_order = (Step(LOAD, 0), Step(forward, 0), Step(P2P, 0), Step(OPTIMIZER, 0), Step(backward, 0))
    pipeline = Pipeline(2, 1, Schedule.CUSTOM, orders_given=(given_order, (Step(forward, 0), Step(backward, 0))))
    fixed = {(stage, kind): (0.01, 1.0) for stage in (0, 1) for kind in (LOAD, P2P, OPTIMIZER)}
    profile = with_measured(random_profile(1, 2, 3), fixed)
    found = frontier(profile, pipeline, plans=3)
    assert found.order == ("LFPOB", "LFBO")
    dag = build_dag(orders_of(found), pipeline, transferring(pipeline, profile))
    assert [dag.keys[kind] for kind in dag.kind[dag.position < 0]] == [(1, P2P)]
    for each in (found.fastest, *found.plans):
        assert (each.iteration_seconds, each.iteration_joules) == pytest.approx(
            play(profile, pipeline, orders_of(found), each.clocks), rel=1e-5
        )


def test_a_named_instruction_that_was_not_measured_is_asked_for() -> None:
    orders = ((Step(LOAD, 0), Step(Instruction.FORWARD, 0), Step(Instruction.BACKWARD, 0)),)
    with pytest.raises(PlanningError, match="no load of stage 0: the schedule Custom runs it"):
        frontier(random_profile(1, 1, 3), Pipeline(1, 1, Schedule.CUSTOM, orders_given=orders))


def test_each_rank_waits_at_its_own_gpus_power() -> None:
    profile = with_gpus(random_profile(1, 2, 4), 50.0, 150.0)
    found = frontier(profile, Pipeline(2, 3), plans=4)
    assert found.blocking_power_watts == pytest.approx(100.0)
    assert found.stage_blocking_power_watts == (50.0, 150.0)
    alike = frontier(with_gpus(random_profile(1, 2, 4), 70.0, 70.0), Pipeline(2, 3), plans=4)
    assert (alike.blocking_power_watts, alike.stage_blocking_power_watts) == (70.0, ())


def test_chunks_of_a_rank_share_its_gpu() -> None:
    pipeline = Pipeline(2, 2, Schedule.ZBV, chunks=2)
    profile = with_gpus(profile_for(pipeline, 1, 4), 50.0, 150.0)
    dag = build_dag(pipeline.orders(), pipeline)
    costs = cost_table(profile, dag.keys, dag.kind_rank, dag.kind_beside)
    for (stage, instruction), options in zip(dag.keys, costs.options, strict=True):
        watts = {0: 50.0, 1: 150.0, 2: 150.0, 3: 50.0}[stage]
        expected = [each.energy_joules - watts * each.time_seconds for each in profile.measurements[stage, instruction]]
        assert all(any(option.cost_joules == pytest.approx(each) for each in expected) for option in options)


def test_a_list_of_too_few_gpus_is_answered_with_a_sentence() -> None:
    with pytest.raises(PlanningError, match="lists the GPUs of 1 ranks, the pipeline has 2"):
        frontier(with_gpus(random_profile(1, 2, 4), 50.0), Pipeline(2, 3))
