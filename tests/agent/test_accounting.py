"""Invariant 8: energy is what the counter says, the baseline what was measured or is called a prediction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_daemonset.accounting import MEASURED, PREDICTED, RankAccount
from perseus_daemonset.follower import RankPlan

NANOSECONDS = 1_000_000_000
PLAN = RankPlan(1, 1, "FB", (1410, 1410), blocking_watts=80.0, predicted_seconds=2.0, predicted_joules=500.0)


def begin(
    account: RankAccount, iteration: int, seconds: float, joules: float | None, plan: RankPlan | None = PLAN
) -> None:
    boundary = Boundary(BoundaryKind.ITERATION_BEGIN, iteration, int(seconds * NANOSECONDS))
    account.begin_iteration(boundary, joules, seconds, plan)


def instruction(kind: BoundaryKind, which: Instruction, seconds: float) -> Boundary:
    return Boundary(kind, 1, int(seconds * NANOSECONDS), which)


def test_an_unlocked_iteration_is_its_own_baseline() -> None:
    account = RankAccount()
    for index, (seconds, joules) in enumerate([(0, 0), (2, 600), (4, 1100), (6, 1600)]):
        begin(account, index, seconds, joules)
    assert account.iterations == 2, "iteration 0 warms up"
    assert account.energy_joules == 1000
    assert account.baseline_joules == {MEASURED: 1000}
    assert (account.unlocked_iteration_joules, account.unlocked_iteration_seconds) == (500, 2)


def test_a_locked_iteration_counts_against_the_measured_one_and_the_wait_beyond_it() -> None:
    account = RankAccount()
    for index, (seconds, joules) in enumerate([(0, 0), (2, 600), (4, 1100)]):
        begin(account, index, seconds, joules)
    account.locked()
    begin(account, 3, 6.5, 1480)
    assert account.energy_joules == 880
    assert account.baseline_joules == {MEASURED: 500 + 500 + 80 * 0.5}


def test_a_shorter_iteration_gets_no_baseline_for_time_it_did_not_take() -> None:
    account = RankAccount()
    for index, (seconds, joules) in enumerate([(0, 0), (2, 600), (4, 1100)]):
        begin(account, index, seconds, joules)
    account.locked()
    begin(account, 3, 5.9, 1500)
    assert account.baseline_joules[MEASURED] == 1000


def test_without_a_measured_iteration_the_baseline_is_called_a_prediction() -> None:
    account = RankAccount()
    begin(account, 5, 0, 0)
    account.locked()
    begin(account, 6, 2.5, 400)
    assert account.baseline_joules == {PREDICTED: 500 + 80 * 0.5}
    assert account.unlocked_iteration_joules is None


def test_an_iteration_without_a_reading_is_not_counted() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    begin(account, 2, 2, None)
    begin(account, 3, 4, 900)
    begin(account, 4, 6, 1400)
    assert (account.iterations, account.energy_joules) == (1, 500)


def test_an_interrupted_iteration_is_not_counted() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    account.interrupted()
    begin(account, 2, 100, 50_000)
    assert (account.iterations, account.energy_joules) == (0, 0.0)


def broken(account: RankAccount, iteration: int, seconds: float, joules: float | None) -> None:
    boundary = Boundary(BoundaryKind.ITERATION_BROKEN, iteration, int(seconds * NANOSECONDS))
    account.break_iteration(boundary, joules, PLAN)


def test_a_broken_iteration_is_energy_used_and_nothing_that_others_are_compared_with() -> None:
    account = RankAccount()
    for index, (seconds, joules) in enumerate([(0, 0), (2, 600), (4, 1100)]):
        begin(account, index, seconds, joules)
    broken(account, 2, 4.5, 1200)
    assert (account.iterations, account.seconds) == (1, 2)
    assert (account.energy_joules, account.baseline_joules) == (600, {MEASURED: 600}), "no saving is claimed for it"
    assert (account.unlocked_iteration_joules, account.unlocked_iteration_seconds) == (500, 2)
    begin(account, 2, 100, 50_000)
    account.locked()
    begin(account, 3, 102, 50_400)
    assert (account.iterations, account.energy_joules) == (2, 1000), "what the script did meanwhile is no iteration"
    assert account.baseline_joules == {MEASURED: 1100}


def test_a_broken_iteration_closes_no_iteration_before_it_and_needs_a_reading() -> None:
    account = RankAccount()
    begin(account, 0, 0, 0)
    broken(account, 0, 1, 100)
    begin(account, 1, 2, 200)
    broken(account, 1, 3, None)
    begin(account, 2, 4, 400)
    end(account, 2, 5, 500)
    broken(account, 3, 6, 600)
    account.interrupted(PLAN)
    assert (account.iterations, account.energy_joules) == (0, 0.0)


def test_a_broken_iteration_tells_no_pipeline_time() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    account.instruction(instruction(BoundaryKind.INSTRUCTION_BEGIN, Instruction.FORWARD, 0.5), order_finished=False)
    account.instruction(instruction(BoundaryKind.INSTRUCTION_END, Instruction.BACKWARD, 2.0), order_finished=False)
    broken(account, 1, 3, 100)
    assert account.pipeline_seconds is None


def end(account: RankAccount, iteration: int, seconds: float, joules: float | None) -> None:
    boundary = Boundary(BoundaryKind.ITERATION_END, iteration, int(seconds * NANOSECONDS))
    account.end_iteration(boundary, joules)


def test_the_last_iteration_counts_up_to_its_own_end() -> None:
    account = RankAccount()
    for index, (seconds, joules) in enumerate([(0, 0), (2, 600), (4, 1100)]):
        begin(account, index, seconds, joules)
        end(account, index, seconds + 1.9, joules + 480)
    account.interrupted(PLAN)
    assert (account.iterations, account.energy_joules) == (2, 500 + 480)
    assert account.seconds == pytest.approx(2 + 1.9)


def test_an_end_of_an_earlier_iteration_closes_no_later_one() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    end(account, 1, 1.9, 480)
    begin(account, 2, 2, 500)
    account.interrupted(PLAN)
    assert (account.iterations, account.energy_joules) == (1, 500)


def evaluated(account: RankAccount, first: int) -> None:
    """An iteration of 2 s and 500 J, a minute and 9,000 J of something else, and the begin of the next iteration."""
    begin(account, first, 0, 0)
    end(account, first, 2, 500)
    begin(account, first + 1, 62, 9_500)


def test_what_runs_between_two_iterations_is_used_and_is_no_iterations_baseline() -> None:
    account = RankAccount()
    evaluated(account, 1)
    assert (account.iterations, account.seconds, account.iteration_seconds) == (1, 2, 2)
    assert (account.energy_joules, account.baseline_joules) == (9_500, {MEASURED: 9_500})
    assert account.baseline_seconds == {MEASURED: 2}
    assert (account.unlocked_iteration_joules, account.unlocked_iteration_seconds) == (500, 2)
    account.locked()
    end(account, 2, 64, 9_900)
    begin(account, 3, 94, 14_900)
    assert account.energy_joules == 14_900
    assert account.baseline_joules == {MEASURED: 15_000}, "the 100 J that the iteration saved, and nothing else"


def test_what_runs_after_the_iteration_that_warms_up_is_not_counted() -> None:
    account = RankAccount()
    evaluated(account, 0)
    assert (account.iterations, account.energy_joules, account.baseline_joules) == (0, 0.0, {})


@pytest.mark.parametrize(
    ("own_seconds", "gap_seconds", "belongs_to_it"),
    [(0.1, 0.9, True), (0.1, 2.1, False), (10.0, 4.9, True), (10.0, 5.1, False)],
)
def test_a_gap_is_part_of_an_iteration_up_to_half_its_length(
    own_seconds: float, gap_seconds: float, belongs_to_it: bool
) -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    end(account, 1, own_seconds, 100)
    begin(account, 2, own_seconds + gap_seconds, 150)
    whole = (own_seconds + gap_seconds, 150) if belongs_to_it else (own_seconds, 100)
    assert (account.seconds, account.unlocked_iteration_joules) == pytest.approx(whole)
    assert account.energy_joules == 150


def test_without_a_reading_at_its_end_an_iteration_goes_to_the_next_begin() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    end(account, 1, 2, None)
    begin(account, 2, 62, 9_500)
    assert (account.iterations, account.seconds, account.energy_joules) == (1, 62, 9_500)


def test_time_is_kept_beside_energy_so_that_a_slowdown_can_be_told() -> None:
    account = RankAccount()
    for index, (seconds, joules) in enumerate([(0, 0), (2, 600), (4, 1100)]):
        begin(account, index, seconds, joules)
    account.locked()
    begin(account, 3, 6.5, 1480)
    assert account.seconds == pytest.approx(4.5)
    assert account.baseline_seconds == {MEASURED: pytest.approx(4.0)}


def test_a_counter_that_went_back_is_no_negative_energy() -> None:
    account = RankAccount()
    begin(account, 1, 0, 1000)
    begin(account, 2, 2, 10)
    assert (account.iterations, account.energy_joules) == (0, 0.0)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 10_000), st.booleans()), min_size=2, max_size=30))
def test_differences_telescope_to_what_the_counter_moved(steps: list[tuple[float, float, bool]]) -> None:
    account = RankAccount()
    seconds = joules = 0.0
    begin(account, 1, 0, 0)
    for index, (duration, energy, locked) in enumerate(steps):
        if locked:
            account.locked()
        seconds, joules = seconds + duration, joules + energy
        begin(account, index + 2, seconds, joules)
    assert account.iterations == len(steps)
    assert account.energy_joules == pytest.approx(joules, rel=1e-9, abs=1e-6)


def test_pipeline_time_is_free_of_the_wait_at_the_synchronisation() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    for kind, which, seconds in (
        (BoundaryKind.INSTRUCTION_BEGIN, Instruction.FORWARD, 0.1),
        (BoundaryKind.INSTRUCTION_END, Instruction.FORWARD, 0.2),
        (BoundaryKind.INSTRUCTION_BEGIN, Instruction.BACKWARD, 1.0),
        (BoundaryKind.INSTRUCTION_END, Instruction.BACKWARD, 1.4),
    ):
        account.instruction(instruction(kind, which, seconds), order_finished=False)
    assert account.pipeline_seconds is None
    account.end_iteration(Boundary(BoundaryKind.ITERATION_END, 1, 9 * NANOSECONDS))
    assert account.pipeline_seconds == pytest.approx(1.3)


def test_pipeline_time_is_told_at_the_last_backward_when_the_plan_knows_it() -> None:
    account = RankAccount()
    begin(account, 1, 0, 0)
    account.instruction(instruction(BoundaryKind.INSTRUCTION_BEGIN, Instruction.FORWARD, 0.5), order_finished=False)
    account.instruction(instruction(BoundaryKind.INSTRUCTION_END, Instruction.BACKWARD, 2.0), order_finished=True)
    assert account.pipeline_seconds == pytest.approx(1.5)
