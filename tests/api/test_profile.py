"""Profiles: the ecosystem's CSV loads as it is, and whatever is wrong is answered with the row and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.errors import DocumentError
from perseus_api.instructions import Instruction
from perseus_api.profile import MAXIMUM_PROFILE_BYTES, MAXIMUM_ROWS, parse_profile

HEADER = '{"blockingPowerWatts": 80}'
COLUMNS = "stage,instruction,frequency,time,energy\n"
GOOD = "0,forward,1410,0.05,20\n0,forward,1200,0.06,18\n0,backward,1410,0.1,40\n0,backward,1200,0.12,36\n"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "profiles" / "gpt3-175b-a100-sxm"


def test_the_example_loads() -> None:
    profile = parse_profile((EXAMPLE / "profile.csv").read_text(), (EXAMPLE / "header.json").read_text())
    assert profile.stages == 8
    assert len(profile.measurements) == 16
    assert profile.header.blocking_power_watts == 83.64
    assert "SOSP" in profile.header.source
    assert profile.header.licence == "Apache-2.0"


def test_a_given_blocking_power_has_no_standard_error_of_the_measured_one() -> None:
    measured = '{"blockingPowerWatts": 80, "blockingPowerWattsStderr": 2}'
    assert parse_profile(COLUMNS + GOOD, measured).header.blocking_power_watts_stderr == 2
    assert parse_profile(COLUMNS + GOOD, measured, 75.0).header.blocking_power_watts_stderr == 0


def test_a_bare_csv_loads_with_a_given_blocking_power() -> None:
    assert parse_profile(COLUMNS + GOOD, None, 75.0).header.blocking_power_watts == 75.0


MIXED = (
    '{"blockingPowerWatts": 80, "stageGpus": [{"gpuModel": "A", "blockingPowerWatts": 60}, {"blockingPowerWatts": 90}]}'
)


def test_each_ranks_gpu_has_its_own_blocking_power() -> None:
    profile = parse_profile(COLUMNS + GOOD, MIXED)
    assert [profile.blocking_power_of(rank) for rank in (0, 1)] == [60.0, 90.0]
    assert profile.header.stage_gpus[0].gpu_model == "A"
    with pytest.raises(IndexError):
        profile.blocking_power_of(2)
    assert parse_profile(COLUMNS + GOOD, HEADER).blocking_power_of(7) == 80.0


def test_a_given_blocking_power_is_that_of_every_rank() -> None:
    profile = parse_profile(COLUMNS + GOOD, MIXED, 75.0)
    assert [profile.blocking_power_of(rank) for rank in (0, 1)] == [75.0, 75.0]
    assert profile.header.stage_gpus[0].gpu_model == "A"


def test_optional_columns_and_line_ends_of_windows_are_read() -> None:
    rows = GOOD.replace("\n", ",10,0.001,0.1\r\n")
    text = COLUMNS.replace("\n", ",samples,time_stderr,energy_stderr\r\n") + rows
    assert parse_profile(text, HEADER).measurements.keys() == {
        (0, Instruction.FORWARD),
        (0, Instruction.BACKWARD),
    }


def test_measurements_come_in_order_of_falling_clock() -> None:
    reversed_rows = "".join(reversed(GOOD.splitlines(keepends=True)))
    found = parse_profile(COLUMNS + reversed_rows, HEADER).measurements[0, Instruction.FORWARD]
    assert [each.frequency_megahertz for each in found] == [1410, 1200]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (GOOD.replace("0.05", "fast"), "row 2: time must be"),
        (GOOD.replace("0.05", "nan"), "row 2: time"),
        (GOOD.replace("0.05", "inf"), "row 2: time"),
        (GOOD.replace(",20\n", ",-20\n"), "row 2: energy"),
        (GOOD.replace("0.05", "0"), "row 2: time"),
        (GOOD.replace("0,forward,1410", "-1,forward,1410"), "row 2: stage must be from 0"),
        (GOOD.replace("0,forward,1410", "0.5,forward,1410"), "row 2: stage must be a whole number"),
        (GOOD.replace("1410", "999999"), "row 2: frequency must be from"),
        (GOOD.replace("forward", "froward"), "row 2: instruction 'froward' is unknown; use one of forward"),
        (GOOD.replace("1200,0.06", "1410,0.06"), "row 3 measures stage 0 forward at 1410 MHz a second time"),
        ("0,forward,1410,0.05,20\n0,backward,1410,0.1,40\n", "clock"),
        ("0,forward,1410\n", "row 2 has 3 cells; 5 columns are named"),
        ("", "no rows"),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(rows: str, sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence):
        parse_profile(COLUMNS + rows, HEADER)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ("stage,instruction,frequency,time\n", "missing: energy"),
        (COLUMNS.replace("time", "duration"), "missing: time; unknown: duration"),
        ("\n", "must name the columns"),
        ('stage,"a\n\nb"\n', r"unknown: 'a\\n\\nb'$"),
    ],
)
def test_wrong_columns_are_named_in_one_line(columns: str, sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence) as caught:
        parse_profile(columns + GOOD, HEADER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (None, "no header: add header.json with blockingPowerWatts"),
        ("{}", "blockingPowerWatts"),
        ('{"blockingPowerWatts": -1}', "blockingPowerWatts"),
        ('{"blockingPowerWatts": 80, "unknown": 1}', "unknown"),
        ('{"blockingPowerWatts": 80, "stageGpus": [{"gpuModel": "A"}]}', "stageGpus.0.blockingPowerWatts"),
        ("[", "header is not valid"),
    ],
)
def test_a_bad_header_is_named(header: str | None, sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence):
        parse_profile(COLUMNS + GOOD, header)


def test_sizes_are_bounded() -> None:
    with pytest.raises(DocumentError, match="at most"):
        parse_profile("x" * (MAXIMUM_PROFILE_BYTES + 1), HEADER)
    many = "".join(f"0,forward,{clock % 90_000 + 1},1,1\n" for clock in range(MAXIMUM_ROWS + 1))
    with pytest.raises(DocumentError, match=f"more than {MAXIMUM_ROWS} rows"):
        parse_profile(COLUMNS + many, HEADER)


@given(st.text(max_size=300))
def test_noise_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(DocumentError) as refusal:
        parse_profile(text, HEADER)
    assert "\n" not in str(refusal.value).strip()


@given(st.text(max_size=100))
def test_a_noisy_header_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(DocumentError):
        parse_profile(COLUMNS + GOOD, text)
