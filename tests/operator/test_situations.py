"""The situations of docs/stragglers.md that are courses of events, in simulated time under the real decisions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from perseus_operator.planning import Stragglers

sys.path.insert(0, str(Path(__file__).parent))
from simulated import FRONTIER, SimulatedJob, slow_between, stretches

FULL = FRONTIER.fastest.iteration_seconds


@pytest.mark.parametrize("ratio", [1.05, 1.1, 1.2, 1.5])
def test_a_straggler_is_answered_at_its_next_scrape_and_its_recovery_too(ratio: float) -> None:
    job = SimulatedJob(FRONTIER, 2, slow_between(1, ratio, 100, 200))
    slow, recovered = job.run(300)
    assert slow.stragglers.pipelines == (1,)
    assert slow.stragglers.deadline_seconds == pytest.approx(ratio * FULL, rel=0.01)
    # The first slow iteration must end, and a scrape must see it.
    assert slow.seconds - 100 <= 2 * ratio * FULL + job.scrape_seconds + 0.5
    assert recovered.stragglers == Stragglers()
    assert recovered.seconds - 200 <= 3 * ratio * FULL + job.scrape_seconds + 0.5


@pytest.mark.parametrize("ratio", [1.05, 1.1, 1.2, 1.5])
def test_in_noise_of_two_percent_a_straggler_is_still_found(ratio: float) -> None:
    job = SimulatedJob(FRONTIER, 2, slow_between(1, ratio, 200), noise=0.02)
    found = stretches(job.run(400))
    assert found
    assert {each.stragglers.pipelines for each in found} == {(1,)}
    assert found[-1].stragglers.deadline_seconds == pytest.approx(ratio * FULL, rel=0.025)


@pytest.mark.parametrize("seed", range(5))
def test_an_hour_of_two_percent_noise_alarms_nobody(seed: int) -> None:
    job = SimulatedJob(FRONTIER, 4, noise=0.02, seed=seed)
    assert job.run(3600) == []


@pytest.mark.parametrize(("on_seconds", "most_changes"), [(10, 40), (30, 40), (60, 90)])
def test_one_that_comes_and_goes_gets_a_bounded_number_of_plans(on_seconds: int, most_changes: int) -> None:
    """Without the bound an hour of half a minute slow, half a minute well would make 120 changes."""
    job = SimulatedJob(
        FRONTIER, 2, lambda index, seconds: 1.2 if index == 1 and seconds % (2 * on_seconds) < on_seconds else 1.0
    )
    assert 2 <= len(job.run(3600)) <= most_changes


def test_caution_wears_off() -> None:
    def slow(index: int, seconds: float) -> float:
        return 1.2 if index == 1 and ((100 < seconds < 400 and seconds % 40 < 20) or seconds > 3000) else 1.0

    job = SimulatedJob(FRONTIER, 2, slow)
    job.run(420)
    assert job.watch.caution > 1
    job.run(2580)
    job.run(100)
    assert job.watch.stragglers.pipelines == (1,)
    assert job.watch.caution <= 1


def test_one_that_grows_slowly_is_followed_in_a_bounded_number_of_steps() -> None:
    job = SimulatedJob(FRONTIER, 2, lambda index, seconds: 1 + max(0.0, seconds - 100) / 6000 if index == 1 else 1.0)
    changes = job.run(3100)  # up to 1.5
    assert all(each.stragglers.pipelines == (1,) for each in changes)
    assert len(changes) <= 45
    assert changes[-1].stragglers.deadline_seconds == pytest.approx(1.5 * FULL, rel=0.02)


def test_one_worse_than_t_star_takes_the_others_to_t_star_and_no_further() -> None:
    job = SimulatedJob(FRONTIER, 3, slow_between(2, 3.0, 100))
    (change,) = job.run(300)
    stretched = change.plan.variants[change.plan.pipelines[0]]
    assert stretched.iteration_seconds == FRONTIER.plans[-1].iteration_seconds
    assert stretched.iteration_seconds < 3.0 * FULL


def test_with_several_stragglers_the_slowest_one_sets_the_time() -> None:
    ratios = {1: 1.2, 2: 1.4}
    job = SimulatedJob(FRONTIER, 4, lambda index, seconds: ratios.get(index, 1.0) if seconds > 100 else 1.0)
    last = job.run(300)[-1]
    assert last.stragglers.pipelines == (1, 2)
    assert last.stragglers.deadline_seconds == pytest.approx(1.4 * FULL, rel=0.01)
    names = [last.plan.variants[index].name for index in last.plan.pipelines]
    assert names == ["stretched", "fastest", "fastest", "stretched"]


def test_when_all_are_slow_nobody_stays_stretched() -> None:
    """Their scrapes come one after the other: for a moment it may look like a straggler."""
    job = SimulatedJob(FRONTIER, 4, lambda index, seconds: 1.2 if seconds > 100 else 1.0)
    job.run(100 + 3 * job.scrape_seconds)
    assert job.watch.stragglers == Stragglers()
    before = len(job.changes)
    job.run(600)
    assert len(job.changes) == before


def test_when_all_are_slow_the_slowest_is_still_a_straggler() -> None:
    job = SimulatedJob(FRONTIER, 4, lambda index, seconds: (1.3 if index == 3 else 1.1) if seconds > 100 else 1.0)
    job.run(300)
    assert job.watch.stragglers.pipelines == (3,)
    assert job.watch.stragglers.deadline_seconds == pytest.approx(1.3 / 1.1 * FULL, rel=0.02)


def test_clocks_of_nodes_apart_by_minutes_change_nothing() -> None:
    def play(offsets: dict[int, float]) -> list[tuple[float, int, tuple[int, ...]]]:
        job = SimulatedJob(FRONTIER, 2, slow_between(1, 1.2, 100, 200), clock_offsets=offsets)
        return [(each.seconds, each.plan.first_iteration, each.stragglers.pipelines) for each in job.run(300)]

    right, wrong = play({}), play({0: -300.0, 1: 240.0})
    assert [each[::2] for each in wrong] == [each[::2] for each in right]
    assert all(0 <= late[1] - early[1] <= 1 for late, early in zip(wrong, right, strict=True))


def test_a_gap_in_the_data_changes_nothing_until_the_hold_time_is_over() -> None:
    job = SimulatedJob(
        FRONTIER, 2, slow_between(1, 1.2, 100), visible=lambda index, seconds: not 200 < seconds < 500,
        straggler={"holdSeconds": 60},
    )  # fmt: skip
    slow, gone, again = job.run(700)
    assert (slow.stragglers.pipelines, gone.stragglers, again.stragglers.pipelines) == ((1,), Stragglers(), (1,))
    assert 260 <= gone.seconds <= 266
    assert again.seconds >= 500


def test_a_short_gap_is_not_seen_at_all() -> None:
    job = SimulatedJob(FRONTIER, 2, slow_between(1, 1.2, 100), visible=lambda index, seconds: not 200 < seconds < 290)
    assert len(job.run(400)) == 1


@pytest.mark.parametrize("ratio", [1.2, 3.0])
def test_an_operator_restarted_in_the_middle_of_a_straggler_goes_on_without_a_jump(ratio: float) -> None:
    job = SimulatedJob(FRONTIER, 2, slow_between(1, ratio, 100, 400), noise=0.005)
    job.run(200)
    before = len(job.changes)
    job.restart_operator()
    job.run(200)
    assert len(job.changes) == before
    assert job.run(100)[-1].stragglers == Stragglers()


def test_an_announcement_is_acted_on_before_anything_is_measured() -> None:
    job = SimulatedJob(
        FRONTIER, 2, slow_between(1, 1.2, 200, 400),
        announced=lambda seconds: {1: 1.2} if 100 < seconds < 410 else {},
    )  # fmt: skip
    announced, over = job.run(500)
    assert announced.seconds <= 101
    assert announced.stragglers == Stragglers((1,), pytest.approx(1.2 * FULL))
    assert over.stragglers == Stragglers()
    assert 410 <= over.seconds <= 416


def test_waiting_for_a_straggler_that_is_gone_costs_a_few_iterations_at_most() -> None:
    """Invariant 3: what a recovery is late is the only time that is lost."""
    job = SimulatedJob(FRONTIER, 2, slow_between(1, 1.2, 100, 200))
    job.run(300)
    lost = sum(seconds / FULL - 1 for when, seconds in job.iteration_seconds if when > 201)
    assert lost < 0.2 * (job.scrape_seconds / FULL + 4)
