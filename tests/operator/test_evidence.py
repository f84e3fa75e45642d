"""A slowdown stands out of the noise, or it is none: the judgement of one pipeline."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_operator.evidence import LEAST_NOISE, PRIOR_NOISE, Evidence, Noise
from perseus_operator.measurements import Measurement


def noise_of(deviation: float, count: int = 200, seed: int = 1) -> Noise:
    source, noise = random.Random(seed), Noise()
    before = 1.0
    for _ in range(count):
        after = source.gauss(1, deviation)
        noise.take(before, after)
        before = after
    return noise


@pytest.mark.parametrize("deviation", [0.005, 0.02, 0.05])
def test_the_noise_is_learnt_from_the_job_itself(deviation: float) -> None:
    assert noise_of(deviation).deviation == pytest.approx(deviation, rel=0.35)


def test_before_anything_is_known_the_noise_is_taken_to_be_large() -> None:
    assert Noise().deviation == PRIOR_NOISE


def test_single_outliers_are_no_noise() -> None:
    noise = noise_of(0.005)
    for _ in range(20):
        noise.take(1.0, 3.0)
        noise.take(3.0, 1.0)
    assert noise.deviation < 0.01


def judged(ratios: list[float], noise: Noise, least: int = 1) -> list[bool]:
    evidence, said = Evidence(), []
    for index, ratio in enumerate(ratios):
        evidence.take(Measurement(ratio, index), 1.0, 15, Noise(), float(index))
        evidence.judge(1.0, 1.03, 1.02, noise, least)
        said.append(evidence.slow)
    return said


def test_where_iterations_repeat_exactly_one_is_enough() -> None:
    assert judged([1.0, 1.001, 1.05], noise_of(0.001)) == [False, False, True]


def test_in_noise_a_large_slowdown_takes_one_and_a_small_one_several() -> None:
    noise = noise_of(0.02)
    assert judged([1.0, 1.2], noise)[-1]
    small = judged([1.0] + [1.06] * 15, noise)
    assert not small[1]
    assert small[-1]


def test_caution_asks_for_more_than_one() -> None:
    assert judged([1.0, 1.2, 1.2, 1.2], noise_of(0.001), least=3) == [False, False, False, True]


def test_one_time_shown_under_two_iterations_counts_once() -> None:
    evidence, noise = Evidence(), Noise()
    assert evidence.take(Measurement(1.25, 7), 1.0, 15, noise, 0.0)
    assert not evidence.take(Measurement(1.25, 7), 1.0, 15, noise, 1.0)
    assert not evidence.take(Measurement(1.25, 8), 1.0, 15, noise, 2.0), "the next iteration began, none ended"
    assert evidence.take(Measurement(1.26, 8), 1.0, 15, noise, 3.0)
    assert evidence.take(Measurement(1.26, 11), 1.0, 15, noise, 4.0), "iterations ended in between"


@given(st.lists(st.floats(0.5, 3.0), min_size=1, max_size=40), st.integers(1, 15), st.floats(LEAST_NOISE, 0.1))
def test_who_is_called_slow_has_a_median_above_the_threshold(ratios: list[float], window: int, width: float) -> None:
    noise = noise_of(width)
    evidence = Evidence()
    for index, ratio in enumerate(ratios):
        evidence.take(Measurement(ratio, index), 1.0, window, noise, 0.0)
        was = evidence.slow
        changed = evidence.judge(1.0, 1.03, 1.02, noise, 1)
        assert len(evidence.ratios) <= window
        if changed:
            median = statistics.median(evidence.ratios)
            assert (median <= 1.02) if was else (median > 1.03)
