"""A profile that drifts is measured anew so often as is allowed, and not for ever."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.errors import DocumentError
from perseus_operator.profiling.repeats import LONGEST_SECONDS, REPEAT_SECONDS, Repeats

NOW = 1_800_000_000
moments = st.lists(st.integers(0, 10 * REPEAT_SECONDS), max_size=60)


@given(moments, st.integers(1, 100))
def test_however_often_it_drifts_the_measurements_are_few_and_far_between(waits: list[int], most: int) -> None:
    repeats, now, begun = Repeats(), NOW, []
    for wait in waits:
        now += wait
        if repeats.may_begin(most, now):
            repeats = Repeats.decode(repeats.begin("p", now).encode()).close()
            begun.append(now)
    assert len(begun) == repeats.number <= most
    assert all(later - earlier >= REPEAT_SECONDS for earlier, later in pairwise(begun))


def test_the_first_may_begin_at_once() -> None:
    assert Repeats().may_begin(1, NOW)


def test_one_that_was_begun_goes_on_until_the_job_has_another_profile() -> None:
    begun = Repeats().begin("p", NOW)
    assert begun.goes_on("p", NOW + 60)
    assert not begun.goes_on("q", NOW + 60)
    assert not begun.close().goes_on("p", NOW + 60)


@pytest.mark.parametrize("later", [LONGEST_SECONDS, -LONGEST_SECONDS])
def test_one_that_comes_to_no_end_is_given_up_whatever_the_clock_says(later: int) -> None:
    assert not Repeats().begin("p", NOW).goes_on("p", NOW + later)


def test_what_never_began_is_not_written_down() -> None:
    assert Repeats().encode() == ""


@given(st.integers(1, 100), st.integers(0, 2**40), st.text(max_size=100), st.booleans())
def test_what_is_written_down_is_read_back(number: int, begun: int, profile: str, is_open: bool) -> None:
    repeats = Repeats(number, begun, profile, is_open)
    assert Repeats.decode(repeats.encode()) == repeats


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"number": 1}', '{"number": 0, "begun": 1, "profile": "p", "open": true}',
        '{"number": true, "begun": 1, "profile": "p", "open": true}',
        '{"number": 1, "begun": 1e99, "profile": "p", "open": true}',
        '{"number": 1, "begun": -1, "profile": "p", "open": true}',
        '{"number": 1, "begun": 1, "profile": 7, "open": true}',
        '{"number": 1, "begun": 1, "profile": "p", "open": 1}', "[" * 2000, "[" * 1000,
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="the repeated measurements are not valid"):
        Repeats.decode(text)
