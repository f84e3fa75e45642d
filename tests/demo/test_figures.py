"""How samples become figures: whole iterations, counter differences, and a refusal when the recording has a hole."""

from __future__ import annotations

import pytest

from demo.figures import (
    Phase,
    iteration_begins,
    lost_iterations,
    measure_phase,
    savings_percent,
    stretched_baseline_joules,
)
from testbed.observation import RankSample, Sample

ITERATION_SECONDS, JOULES = 3.0, 500.0


def recording(iterations: int, ranks: int = 2) -> list[Sample]:
    """Samples each 0.2 s of a run in which every iteration takes 3 s and each GPU uses 500 J."""
    samples = []
    for tick in range(int(iterations * ITERATION_SECONDS / 0.2) + 10):
        time = 1000.0 + 0.2 * tick
        iteration = int((time - 1000.0) / ITERATION_SECONDS)
        # Counters move a little after stage 0's begin, as a drained pipeline's do.
        finished = max(0, int((time - 0.5 - 1000.0) / ITERATION_SECONDS))
        sample = Sample(time_seconds=time)
        sample.pipeline_iteration[0] = iteration
        sample.iteration_begin_seconds[0] = 1000.0 + iteration * ITERATION_SECONDS
        for stage in range(ranks):
            sample.ranks[0, stage] = RankSample(energy_joules=JOULES * finished, iterations=finished)
        samples.append(sample)
    return samples


def test_no_iteration_is_lost_while_training_goes_on_and_one_that_is_shows() -> None:
    samples = recording(10)
    assert lost_iterations(samples[0], samples[-1]) == 0
    for rank in samples[-1].ranks.values():
        rank.iterations -= 3
    assert lost_iterations(samples[0], samples[-1]) in (2, 3)


def test_a_phase_is_the_mean_of_whole_iterations() -> None:
    phase = measure_phase("planned", recording(8), 2, 6)
    assert phase.iterations == 4
    assert phase.iteration_seconds == pytest.approx(ITERATION_SECONDS)
    assert phase.iteration_joules == pytest.approx(2 * JOULES)
    assert phase.pipeline_joules == {0: pytest.approx(2 * JOULES)}


@pytest.mark.parametrize(("first", "end"), [(2, 40), (6, 6), (6, 5)])
def test_iterations_that_were_not_seen_are_not_invented(first: int, end: int) -> None:
    with pytest.raises(ValueError, match="not all seen"):
        measure_phase("planned", recording(8), first, end)


def test_a_rank_that_stood_still_is_an_error_not_a_saving() -> None:
    samples = recording(8)
    for sample in samples:
        sample.ranks[0, 1] = RankSample(energy_joules=5.0, iterations=1)
    with pytest.raises(ValueError, match="stage 1 finished no iteration"):
        measure_phase("planned", samples, 2, 6)


def test_the_begin_of_an_iteration_is_the_first_time_it_is_seen() -> None:
    assert iteration_begins(recording(3), 0) == {0: 1000.0, 1: 1003.0, 2: 1006.0, 3: 1009.0}


def test_a_stretched_baseline_adds_blocking_power_for_the_wait_alone() -> None:
    baseline = Phase("baseline", 10, 3.0, 8000.0, {0: 4000.0, 1: 4000.0}, 0.0, 30.0)
    assert stretched_baseline_joules(baseline, 0, 3.5, stages=8, blocking_watts=100.0) == pytest.approx(4400.0)
    assert stretched_baseline_joules(baseline, 0, 2.9, stages=8, blocking_watts=100.0) == pytest.approx(4000.0)


def test_savings_are_one_minus_energy_over_baseline() -> None:
    assert savings_percent(84.0, 100.0) == pytest.approx(16.0)
