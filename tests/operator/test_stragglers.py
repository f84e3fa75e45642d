"""Who straggles, and from which iteration a plan may hold: the decisions alone, attacked with numbers that lie."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.job import StragglerPolicy
from perseus_api.plan import Baseline, JobReference, Plan, Variant
from perseus_operator.measurements import NOTICE_SECONDS, Measurement, PipelineVoice, first_iteration
from perseus_operator.planning import FASTEST, STRETCHED, Stragglers
from perseus_operator.steps.plan import age_seconds
from perseus_operator.stragglers import JobWatch, assess, both, slows_somebody, training_restarted

PLANNED, NOW = 2.8, 5_000.0
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


def at(seconds: float | None, iteration: int = 20) -> Measurement:
    return Measurement(seconds, iteration)


class Rounds:
    """A plan that is watched, iteration by iteration; nothing is acted on."""

    def __init__(self, found: Plan, policy: StragglerPolicy = POLICY, calm_iterations: int = 20) -> None:
        self.plan, self.policy, self.now = found, policy, NOW
        self.watch = JobWatch.resume(found, policy, NOW)
        self.iteration = found.first_iteration + 1
        self.announced: dict[int, float] = {}
        for step in range(calm_iterations):
            calm = {
                index: found.variants[variant].iteration_seconds * (1 + 0.001 * (step % 2))
                for index, variant in enumerate(found.pipelines)
                if index not in self.watch.stragglers.pipelines
            }
            self.see(calm)

    def see(self, seconds: dict[int, float]) -> Stragglers:
        """One more iteration, and what is decided."""
        self.iteration += 1
        self.now += 3.0
        measured = {index: at(each, self.iteration) for index, each in seconds.items()}
        return assess(self.watch, self.plan, measured, self.policy, self.announced, self.now)


def test_a_slow_pipeline_is_a_straggler_and_its_time_the_deadline() -> None:
    said = Rounds(plan()).see({0: PLANNED, 1: 3.2})
    assert said.pipelines == (1,)
    assert said.deadline_seconds == pytest.approx(3.2, rel=0.006)
    assert said.deadline_seconds <= 3.2, "no more than what is sure: stretching too far costs time"


@pytest.mark.parametrize(("ratio", "slow"), [(1.029, False), (1.033, True)])
def test_the_threshold_to_enter(ratio: float, slow: bool) -> None:
    assert bool(Rounds(plan()).see({0: PLANNED, 1: PLANNED * ratio}).pipelines) is slow


@pytest.mark.parametrize(("ratio", "slow"), [(1.018, False), (1.023, True)])
def test_the_threshold_to_leave_is_lower(ratio: float, slow: bool) -> None:
    rounds = Rounds(plan(slow=(1,)))
    assert bool(rounds.see({0: 3.2, 1: PLANNED * ratio}).pipelines) is slow


def test_a_wobble_of_the_straggler_is_no_new_situation() -> None:
    rounds = Rounds(plan(slow=(1,)))
    assert rounds.see({0: 3.2, 1: 3.21}) == rounds.watch.stragglers
    moved = rounds.see({0: 3.2, 1: 3.5})
    assert moved.deadline_seconds == pytest.approx(3.5, rel=0.01)


def test_a_straggler_that_is_less_slow_than_before_makes_everybody_faster_at_once() -> None:
    rounds = Rounds(plan(slow=(1,), stretched=3.5))
    rounds.watch.stretch_after_seconds = rounds.now + 1000
    said = rounds.see({0: 3.5, 1: 3.1})
    assert said.pipelines == (1,)
    assert said.deadline_seconds == pytest.approx(3.1, rel=0.01)


def test_nobody_is_made_slower_twice_within_the_dwell_time() -> None:
    rounds = Rounds(plan())
    rounds.watch.settle(Stragglers(), POLICY, rounds.now)
    rounds.watch.stretch_after_seconds = rounds.now + 10
    assert rounds.see({0: PLANNED, 1: 3.2}) == Stragglers()
    rounds.now += 10
    assert rounds.see({0: PLANNED, 1: 3.2}).pipelines == (1,)


def test_a_measurement_from_before_the_plan_accuses_nobody() -> None:
    """After a recovery the healthy pipeline's last time is still the stretched one."""
    found = plan(first=20)
    watch = JobWatch.resume(found, POLICY, NOW - 100)
    before = {0: at(3.2, iteration=20), 1: at(PLANNED, iteration=20)}
    assert assess(watch, found, before, POLICY, {}, NOW) == Stragglers()
    # The same time, shown once more in the first moment of the next iteration.
    assert assess(watch, found, {0: at(3.2, 21), 1: at(PLANNED, 21)}, POLICY, {}, NOW) == Stragglers()
    assert assess(watch, found, {0: at(3.3, 21), 1: at(PLANNED, 21)}, POLICY, {}, NOW).pipelines == (0,)


def test_all_pipelines_slow_is_nobodys_straggling() -> None:
    rounds = Rounds(plan())
    rounds.see({0: 3.2, 1: 3.2})
    for _ in range(POLICY.window_iterations):
        said = rounds.see({0: 3.2, 1: 3.2})
    assert said == Stragglers()


def test_what_everybody_is_slow_by_is_taken_off_the_deadline() -> None:
    rounds = Rounds(plan(), calm_iterations=0)
    for step in range(30):
        wobble = 1 + 0.001 * (step % 2)
        said = rounds.see({0: PLANNED * 1.1 * wobble, 1: PLANNED * 1.1 * 1.2 * wobble})
    assert said.pipelines == (1,)
    assert said.deadline_seconds == pytest.approx(PLANNED * 1.2, rel=0.01)


def test_one_pipeline_has_nobody_to_wait_for_it() -> None:
    found = plan(pipelines=1)
    assert Rounds(found, calm_iterations=0).see({0: 9.0}) == Stragglers()


def test_a_policy_that_is_off_sees_nothing() -> None:
    off = StragglerPolicy(enabled=False)
    assert Rounds(plan(), off).see({0: PLANNED, 1: 9.0}) == Stragglers()


def test_without_data_the_last_decision_holds_and_then_nobody_is_slowed() -> None:
    rounds = Rounds(plan(slow=(1,)), StragglerPolicy(hold_seconds=60), calm_iterations=0)
    rounds.see({0: 3.2, 1: 3.2})
    rounds.now += 50
    assert rounds.see({}) == rounds.watch.stragglers
    rounds.now += 10
    assert rounds.see({}) == Stragglers()


def test_a_straggler_that_falls_silent_alone_is_forgotten_too() -> None:
    rounds = Rounds(plan(slow=(1,)), StragglerPolicy(hold_seconds=60), calm_iterations=0)
    rounds.see({0: 3.2, 1: 3.2})
    rounds.now += 70
    assert rounds.see({0: 3.2}) == Stragglers()


def test_an_announcement_wins_until_what_is_measured_is_worse() -> None:
    rounds = Rounds(plan(pipelines=3))
    rounds.announced = {1: 1.15}
    said = rounds.see({0: PLANNED, 1: PLANNED, 2: PLANNED})
    assert said == Stragglers((1,), PLANNED * 1.15)
    rounds.watch.settle(said, POLICY, rounds.now)
    rounds.now += POLICY.dwell_seconds
    worse = rounds.see({0: PLANNED, 1: PLANNED * 1.3, 2: PLANNED})
    assert worse.deadline_seconds == pytest.approx(PLANNED * 1.3, rel=0.01)


def test_an_announcement_for_everybody_slows_nobody() -> None:
    rounds = Rounds(plan())
    rounds.announced = {0: 1.2, 1: 1.2}
    assert rounds.see({0: PLANNED, 1: PLANNED}) == Stragglers()


@given(st.dictionaries(st.integers(-3, 9), st.floats(allow_nan=True), max_size=5))
def test_no_announcement_slows_beyond_its_own_words(announced: dict[int, float]) -> None:
    found = plan()
    said = assess(JobWatch.resume(found, POLICY, NOW - 100), found, {}, POLICY, announced, NOW)
    if said.pipelines:
        assert said.deadline_seconds <= max(announced[index] for index in said.pipelines) * PLANNED
        assert len(said.pipelines) < len(found.pipelines)


numbers = st.floats(allow_nan=True, allow_infinity=True)
measurements = st.builds(
    Measurement, st.none() | numbers, st.integers(-5, 10**9), st.none() | numbers, st.none() | numbers, numbers
)


@given(st.lists(st.dictionaries(st.integers(0, 9), measurements, max_size=6), min_size=1, max_size=6))
def test_nonsense_never_slows_anybody_beyond_what_was_measured(rounds: list[dict[int, Measurement]]) -> None:
    held = plan()
    watch = JobWatch.resume(held, POLICY, NOW - 100)
    seen = 0.0
    for step, found in enumerate(rounds):
        measured = {}
        for index, each in found.items():
            chosen = watch.voices.setdefault(index, PipelineVoice()).choose([each], PLANNED, NOW + step)
            if chosen is not None:
                measured[index] = chosen
                seen = max(seen, chosen.seconds or 0.0)
        said = assess(watch, held, measured, POLICY, {}, NOW + step)
        if said.pipelines:
            assert math.isfinite(said.deadline_seconds)
            assert said.deadline_seconds <= seen
            assert len(said.pipelines) < len(held.pipelines)


situations = st.builds(
    lambda slow, seconds: Stragglers(tuple(sorted(slow)), seconds) if slow else Stragglers(),
    st.sets(st.integers(0, 5), max_size=5),
    st.floats(1, 10),
)


@given(situations, situations)
def test_what_both_situations_allow_slows_nobody_beyond_either(one: Stragglers, other: Stragglers) -> None:
    allowed = both(one, other, 6)
    assert not slows_somebody(one, allowed)
    assert not slows_somebody(other, allowed)


offsets = st.floats(-600, 600) | st.just(0.0)


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 30), st.floats(2.0, 4.0), offsets)
def test_a_plan_begins_late_enough_for_every_agent_whatever_the_nodes_clocks_say(
    iteration: int, into: float, age: float, seconds: float, offset: float
) -> None:
    """A clock that is wrong moves the plan by one iteration at most (a late one is counted), a right one not at all."""
    period = max(seconds, PLANNED)
    scraped = 1_000_000.0
    begin = scraped - into * period
    measured = {0: Measurement(seconds, iteration, begin + offset, scraped, age)}
    first = first_iteration(PLANNED, measured, 0.0, NOTICE_SECONDS)
    begins = begin + (first - iteration) * period - (scraped + age)
    tolerance = period + 1.0 if offset else 1e-6
    assert begins >= NOTICE_SECONDS - tolerance
    assert begins <= NOTICE_SECONDS + period * (2 if offset else 1) + 1e-6


def test_the_pod_that_moves_speaks_for_a_pipeline_not_the_one_with_the_later_clock() -> None:
    voice = PipelineVoice()
    dead = Measurement(3.0, 500, begin_seconds=2000.0, scraped_seconds=2001.0, pod="dead")
    voice.choose([dead], PLANNED, NOW)
    living = Measurement(2.8, 3, begin_seconds=1700.0, scraped_seconds=2001.0, pod="living")
    chosen = voice.choose([dead, living], PLANNED, NOW + 5)
    assert chosen is living


def test_a_pipeline_that_stands_still_says_nothing_any_more() -> None:
    voice = PipelineVoice()
    last = Measurement(3.0, 500, pod="a")
    assert voice.choose([last], PLANNED, NOW) is last
    assert voice.choose([last], PLANNED, NOW + 59) is last
    assert voice.choose([last], PLANNED, NOW + 61) is None


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
    found = plan(slow=(1,), stretched=3.3)
    watch = JobWatch.resume(found, POLICY, NOW)
    assert watch.stragglers == Stragglers((1,), 3.3)
    assert assess(watch, found, {}, POLICY, {}, NOW + 1) == watch.stragglers


def test_an_operator_that_starts_anew_waits_no_longer_than_if_it_had_been_there() -> None:
    held, announced = plan(), {1: 1.2}
    assert not assess(JobWatch.resume(held, POLICY, NOW), held, {}, POLICY, announced, NOW + 1).pipelines
    since = POLICY.dwell_seconds - 1
    assert assess(JobWatch.resume(held, POLICY, NOW, since), held, {}, POLICY, announced, NOW + 1).pipelines == (1,)


def test_the_age_of_a_plan_is_that_of_its_last_change() -> None:
    first, last, now = "2026-11-29T10:00:00Z", "2026-11-29T10:00:30Z", 1795946440.0
    fields = [{"manager": "perseus-operator", "time": first}, {"manager": "kubectl", "time": last}]
    assert age_seconds({"metadata": {"managedFields": fields}}, now) == 10
    assert age_seconds({"metadata": {"managedFields": fields}}, now - 60) == 0, "nodes' clocks differ"
    for unknown in ([], None, [{"manager": "kubectl"}], [{"time": "yesterday"}]):
        assert age_seconds({"metadata": {"managedFields": unknown}}, now) == 0
