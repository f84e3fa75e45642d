"""Who straggles, and from which iteration a plan may hold: the decisions alone, attacked with numbers that lie."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.job import StragglerPolicy
from perseus_api.plan import Baseline, JobReference, Plan, Variant
from perseus_operator.planning import FASTEST, STRETCHED, Stragglers
from perseus_operator.prometheus import NoAnswer, samples
from perseus_operator.stragglers import (
    HOLD_WITHOUT_DATA_SECONDS,
    NOTICE_SECONDS,
    JobWatch,
    Measurement,
    assess,
    first_iteration,
    training_restarted,
)

PLANNED, WALL, NOW = 2.8, 1_000_000.0, 5_000.0
POLICY = StragglerPolicy()


def plan(pipelines: int = 2, first: int = 11, slow: tuple[int, ...] = (), stretched: float = 3.2) -> Plan:
    variants = [Variant(name=FASTEST, iteration_seconds=PLANNED, iteration_joules=1.0, clocks=((1410, 1410),))]
    if slow:
        variants.append(
            Variant(name=STRETCHED, iteration_seconds=stretched, iteration_joules=1.0, clocks=((900, 900),))
        )
    return Plan(
        job=JobReference(namespace="a", name="b", uid="c"),
        generation=3,
        first_iteration=first,
        order=("FB",),
        variants=tuple(variants),
        pipelines=tuple(0 if index in slow or not slow else 1 for index in range(pipelines)),
        baseline=Baseline(iteration_seconds=PLANNED, stage_joules=(1.0,), blocking_power_watts=80.0),
    )


def at(seconds: float | None, iteration: int = 20, begin: float = WALL - 1) -> Measurement:
    return Measurement(seconds, iteration, begin)


def watching(found: Plan) -> JobWatch:
    return JobWatch.resume(found, NOW - 1)


def test_a_slow_pipeline_is_a_straggler_and_its_time_the_deadline() -> None:
    found = plan()
    said = assess(watching(found), found, {0: at(PLANNED), 1: at(3.2)}, POLICY, NOW, WALL)
    assert said.pipelines == (1,)
    assert said.deadline_seconds == pytest.approx(3.2)


def test_what_measuring_adds_to_everybody_is_taken_off_the_deadline() -> None:
    found = plan()
    said = assess(watching(found), found, {0: at(PLANNED * 1.01), 1: at(3.2)}, POLICY, NOW, WALL)
    assert said.deadline_seconds == pytest.approx(3.2 / 1.01)


@pytest.mark.parametrize(("ratio", "slow"), [(1.029, False), (1.031, True)])
def test_the_threshold_to_enter(ratio: float, slow: bool) -> None:
    found = plan()
    said = assess(watching(found), found, {0: at(PLANNED), 1: at(PLANNED * ratio)}, POLICY, NOW, WALL)
    assert bool(said.pipelines) is slow


@pytest.mark.parametrize(("ratio", "slow"), [(1.019, False), (1.021, True)])
def test_the_threshold_to_leave_is_lower(ratio: float, slow: bool) -> None:
    found = plan(slow=(1,))
    said = assess(watching(found), found, {0: at(3.2), 1: at(PLANNED * ratio)}, POLICY, NOW, WALL)
    assert bool(said.pipelines) is slow


def test_a_wobble_of_the_straggler_is_no_new_situation() -> None:
    found = plan(slow=(1,))
    watch = watching(found)
    assert assess(watch, found, {0: at(3.2), 1: at(3.25)}, POLICY, NOW, WALL) == watch.stragglers
    moved = assess(watch, found, {0: at(3.2), 1: at(3.4)}, POLICY, NOW, WALL)
    assert moved.deadline_seconds == pytest.approx(3.4)


def test_a_measurement_from_before_the_plan_accuses_nobody() -> None:
    """After a recovery the healthy pipeline's last time is still the stretched one."""
    found = plan(first=20)
    said = assess(watching(found), found, {0: at(3.2, iteration=20), 1: at(PLANNED, iteration=20)}, POLICY, NOW, WALL)
    assert said == Stragglers()
    said = assess(watching(found), found, {0: at(3.2, iteration=21), 1: at(PLANNED, iteration=21)}, POLICY, NOW, WALL)
    assert said.pipelines == (0,)


def test_all_pipelines_slow_is_nobodys_straggling() -> None:
    found = plan()
    assert assess(watching(found), found, {0: at(3.2), 1: at(3.2)}, POLICY, NOW, WALL) == Stragglers()


def test_one_pipeline_has_nobody_to_wait_for_it() -> None:
    found = plan(pipelines=1)
    assert assess(watching(found), found, {0: at(9.0)}, POLICY, NOW, WALL) == Stragglers()


def test_a_policy_that_is_off_sees_nothing() -> None:
    found = plan()
    off = StragglerPolicy(enabled=False)
    assert assess(watching(found), found, {0: at(PLANNED), 1: at(9.0)}, off, NOW, WALL) == Stragglers()


def test_without_data_the_last_decision_holds_and_then_nobody_is_slowed() -> None:
    found = plan(slow=(1,))
    watch = watching(found)
    assert assess(watch, found, {}, POLICY, NOW, WALL) == watch.stragglers
    assert assess(watch, found, {}, POLICY, NOW + HOLD_WITHOUT_DATA_SECONDS, WALL) == Stragglers()


numbers = st.floats(allow_nan=True, allow_infinity=True)
measurements = st.builds(Measurement, st.none() | numbers, st.integers(-5, 10**9), numbers)


@given(st.dictionaries(st.integers(0, 9), measurements, max_size=6))
def test_nonsense_never_slows_anybody_beyond_what_was_measured(found: dict[int, Measurement]) -> None:
    held = plan()
    said = assess(watching(held), held, found, POLICY, NOW, WALL)
    if said.pipelines:
        assert math.isfinite(said.deadline_seconds)
        assert said.deadline_seconds <= max(found[index].seconds or 0.0 for index in said.pipelines)
        assert len(said.pipelines) < len(held.pipelines)


@given(st.integers(0, 1000), st.floats(0, 30), st.floats(2.0, 4.0))
def test_a_plan_begins_late_enough_for_every_agent_to_have_it(iteration: int, age: float, seconds: float) -> None:
    found = plan()
    first = first_iteration(found, {0: at(seconds, iteration, WALL - age)}, WALL)
    period = max(seconds, PLANNED)
    begins = WALL - age + (first - iteration) * period
    assert begins >= WALL + NOTICE_SECONDS - 1e-6
    assert begins <= WALL + NOTICE_SECONDS + period + 1e-6


def test_training_that_starts_anew_is_seen_once_iterations_count_from_zero() -> None:
    found = plan(first=11)
    watch = JobWatch()
    assert not training_restarted(watch, found, {0: at(PLANNED, 15)})
    assert training_restarted(watch, found, {0: at(PLANNED, 0)})


def test_a_first_start_is_no_restart() -> None:
    found = plan(first=11)
    watch = JobWatch()
    assert not training_restarted(watch, found, {0: at(None, 0)})
    assert not training_restarted(watch, found, {0: at(PLANNED, 5)})


def test_an_operator_that_starts_anew_finds_out_where_it_was() -> None:
    watch = JobWatch.resume(plan(slow=(1,), stretched=3.3), NOW)
    assert watch.stragglers == Stragglers((1,), 3.3)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(json_values)
def test_an_answer_that_is_none_is_refused_not_believed(answer: object) -> None:
    with pytest.raises(NoAnswer):
        samples(answer)


@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from(["1.5", "NaN", "+Inf", "-Inf"]))))
def test_only_finite_numbers_come_out_of_an_answer(found: list[tuple[str, str]]) -> None:
    result = [{"metric": {"job": job}, "value": [0, value]} for job, value in found]
    read = samples({"status": "success", "data": {"resultType": "vector", "result": result}})
    assert [value for _, value in read] == [1.5 for _, value in found if value == "1.5"]
