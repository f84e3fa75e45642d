"""A profile that no longer holds is corrected by what all pipelines share, bounded, and never by a straggler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api import names
from perseus_api.errors import DocumentError
from perseus_api.instructions import Instruction
from perseus_api.profile import parse_profile
from perseus_api.schedules import Schedule
from perseus_operator.children import ENV_CHECKSUM, ENV_CORRECTIONS, ENV_SHAPE
from perseus_operator.drift import (
    AGREEING_LOOKS,
    LEAST_FACTOR,
    MOST_FACTOR,
    QUIET_SECONDS,
    Bounds,
    Corrections,
    DriftWatch,
    drift_of,
)
from perseus_operator.optimiser.main import compute
from perseus_operator.profiles import profile_checksum
from perseus_operator.prometheus import read_drifts
from perseus_planner import Pipeline
from perseus_simulator.testing import SPLIT, example_profile

from harness.objects import HEADER, csv_of

FORWARD, BACKWARD = (0, Instruction.FORWARD), (0, Instruction.BACKWARD)


def test_what_all_pipelines_share_is_a_drift_and_one_slow_pipeline_is_none() -> None:
    assert drift_of({FORWARD: Bounds(1.08, 1.12), BACKWARD: Bounds(1.0, 1.5)}, 5) == {FORWARD: 1.08}
    assert drift_of({FORWARD: Bounds(0.85, 0.92)}, 5) == {FORWARD: 0.92}
    assert drift_of({FORWARD: Bounds(0.9, 1.2)}, 5) == {}


def test_the_setting_is_the_threshold_and_zero_is_never() -> None:
    assert drift_of({FORWARD: Bounds(1.04, 1.04)}, 5) == {}
    assert drift_of({FORWARD: Bounds(1.5, 1.5)}, 0) == {}


def test_once_one_drifts_the_small_drifts_are_taken_along() -> None:
    assert drift_of({FORWARD: Bounds(1.08, 1.08), BACKWARD: Bounds(1.02, 1.02)}, 5) == {FORWARD: 1.08, BACKWARD: 1.02}


def test_a_drift_must_last_and_is_quiet_after_a_correction() -> None:
    watch, bounds = DriftWatch(), {FORWARD: Bounds(1.1, 1.1)}
    said = [watch.look(bounds, 5, float(step)) for step in range(AGREEING_LOOKS + 1)]
    assert said == [False] * (AGREEING_LOOKS - 1) + [True, False]
    assert watch.factors == {FORWARD: 1.1}
    watch.corrected(10.0)
    assert not any(watch.look(bounds, 5, 10.0 + QUIET_SECONDS * part) for part in (0.1, 0.5, 0.9))
    assert watch.factors == {}


def test_a_moment_is_no_drift() -> None:
    watch = DriftWatch()
    for step in range(10):
        drifting = step % AGREEING_LOOKS != 0
        assert not watch.look({FORWARD: Bounds(1.1, 1.1)} if drifting else {}, 5, float(step))


works = st.tuples(st.integers(0, 255), st.sampled_from(list(Instruction)))
factors = st.dictionaries(works, st.floats(0.01, 100), max_size=8)


@given(factors, factors)
def test_corrections_stay_bounded_and_survive_their_text(one: dict, other: dict) -> None:  # type: ignore[type-arg]
    found = Corrections("sha256:1").times(one).times(other)
    assert all(LEAST_FACTOR <= each <= MOST_FACTOR for each in found.factors.values())
    if found.factors:
        assert Corrections.decode(found.encode()) == found
        assert found.checksum != "sha256:1"
        assert len(found.checksum) <= 128
    else:
        assert found.checksum == "sha256:1"


def test_a_correction_and_its_opposite_leave_the_profile_as_it_was() -> None:
    there = Corrections("p").times({FORWARD: 1.1})
    assert there.times({FORWARD: 1 / 1.1}).checksum == "p"


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"profile": "p"}', '{"profile": "p", "factors": {"0/forward": 9}}',
        '{"profile": "p", "factors": {"0/sideways": 1.1}}', '{"profile": "p", "factors": {"-1/forward": 1.1}}',
        '{"profile": "p", "factors": {"0/forward": "NaN"}}', '{"profile": 3, "factors": {}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_damaged_corrections_are_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="corrections are not valid"):
        Corrections.decode(text)


def test_bounds_are_read_by_job_stage_and_instruction() -> None:
    own = {"namespace": "a", "job": "b", "stage": "0", "instruction": "forward"}
    found = [
        ({**own, "bound": "least"}, 1.1), ({**own, "bound": "most"}, 1.2),
        ({**own, "stage": "1", "bound": "least"}, 1.1), ({**own, "instruction": 'x"}', "bound": "least"}, 1.1),
    ]  # fmt: skip
    assert read_drifts(found) == {("a", "b"): {FORWARD: Bounds(1.1, 1.2)}}


def test_the_optimisation_pod_makes_the_frontier_of_corrected_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv_text = csv_of()
    (tmp_path / names.PROFILE_CSV_KEY).write_text(csv_text)
    (tmp_path / names.PROFILE_HEADER_KEY).write_text(HEADER)
    monkeypatch.setenv(ENV_SHAPE, json.dumps({"stages": 2, "microbatches": 4, "schedule": "1F1B"}))
    plain = compute(tmp_path)
    everything = dict.fromkeys(parse_profile(csv_text, HEADER).measurements, 1.1)
    corrections = Corrections(profile_checksum(csv_text, HEADER)).times(everything)
    monkeypatch.setenv(ENV_CORRECTIONS, corrections.encode())
    monkeypatch.setenv(ENV_CHECKSUM, corrections.checksum)
    corrected = compute(tmp_path)
    assert corrected.fastest.iteration_seconds == pytest.approx(1.1 * plain.fastest.iteration_seconds)
    assert corrected.profile_checksum == corrections.checksum
    monkeypatch.setenv(ENV_CHECKSUM, plain.profile_checksum)
    with pytest.raises(DocumentError, match="changed while it was optimised"):
        compute(tmp_path)


def test_a_ranks_drift_corrects_all_of_its_chunks() -> None:
    pipeline = Pipeline(2, 4, Schedule.ZBV, chunks=2)
    profile = example_profile(4, instructions=SPLIT)
    corrected = Corrections("p").times({(0, Instruction.FORWARD): 1.2}).apply(profile, pipeline)
    grown = {
        key for key, rows in corrected.measurements.items()
        if rows[0].time_seconds == pytest.approx(1.2 * profile.measurements[key][0].time_seconds)
    }  # fmt: skip
    assert grown == {(0, Instruction.FORWARD), (3, Instruction.FORWARD)}, "in V shape rank 0 holds the ends"
