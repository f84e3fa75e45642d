"""A clock that was asked for and is not held: why, for how long, and when somebody else has set it. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_daemonset.hardware import Reading
from perseus_daemonset.held import ABOVE, ARBITRATION, PROOFS, HeldClock, Verdict


def reading(clock: int, *reasons: str) -> Reading:
    return Reading(clock, 300.0, 60.0, reasons)


def test_a_clock_within_the_devices_steps_is_held() -> None:
    books = HeldClock()
    assert books.judge(1, 1000, reading(990, "sw_power_cap"), 0.5) is Verdict.HELD
    assert (books.watched_seconds, books.not_held_seconds, books.reason) == (0.5, {}, "")


@pytest.mark.parametrize(
    ("reasons", "named"),
    [
        (["sw_power_cap"], "sw_power_cap"),
        (["sw_power_cap", "hw_thermal_slowdown"], "hw_thermal_slowdown"),
        (["applications_clocks_setting"], ARBITRATION),
        (["bit_12"], "bit_12"),
        ([], ARBITRATION),
    ],
)
def test_a_lower_clock_has_one_reason_the_gravest_that_the_device_names(reasons: list[str], named: str) -> None:
    books = HeldClock()
    assert books.judge(1, 1200, reading(900, *reasons), 0.5) is Verdict.NOT_HELD
    assert books.not_held_seconds == {named: 0.5}


def test_a_clock_that_was_held_and_changed_without_a_reason_is_somebody_elses() -> None:
    books = HeldClock()
    books.judge(1, 1000, reading(1000), 0.5)
    verdicts = [books.judge(1, 1000, reading(1400), 0.1) for _ in range(PROOFS)]
    assert verdicts == [*[Verdict.NOT_HELD] * (PROOFS - 1), Verdict.REPLACED]
    assert books.reason == ABOVE


def test_a_clock_that_fell_without_a_reason_is_under_somebody_elses_limit() -> None:
    books = HeldClock()
    books.judge(1, 1000, reading(1000), 0.5)
    verdicts = [books.judge(1, 1000, reading(700), 0.1) for _ in range(PROOFS)]
    assert verdicts[-1] is Verdict.OVERRULED


def test_a_reason_of_a_driver_to_come_is_a_reason_and_nobodys_fault() -> None:
    books = HeldClock()
    books.judge(1, 1000, reading(1000), 0.5)
    assert {books.judge(1, 1000, reading(700, "bit_12"), 0.1) for _ in range(9)} == {Verdict.NOT_HELD}


def test_a_clock_that_never_was_held_is_arbitration_and_not_blamed_on_anybody() -> None:
    books = HeldClock()
    assert {books.judge(1, 1400, reading(1300), 0.1) for _ in range(20)} == {Verdict.NOT_HELD}


def test_a_new_request_begins_the_proof_anew() -> None:
    books = HeldClock()
    for request in range(10):
        books.judge(request, 1000, reading(1000), 0.1)
        assert books.judge(request, 1000, reading(1400), 0.1) is Verdict.NOT_HELD


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([900, 1200]), st.sampled_from([600, 900, 1200, 1400]),
                  st.sampled_from([(), ("sw_power_cap",), ("hw_slowdown", "sw_power_cap")])),
        max_size=60,
    )
)  # fmt: skip
def test_the_reasons_times_add_up_and_nobody_is_blamed_for_power_or_heat(
    steps: list[tuple[int, int, int, tuple[str, ...]]],
) -> None:
    books = HeldClock()
    for request, requested, held, reasons in steps:
        verdict = books.judge(request, requested, reading(held, *reasons), 1.0)
        if verdict is Verdict.REPLACED:
            assert held > requested
        if verdict is Verdict.OVERRULED:
            assert held < requested
            assert not reasons
    assert sum(books.not_held_seconds.values()) <= books.watched_seconds == len(steps)
