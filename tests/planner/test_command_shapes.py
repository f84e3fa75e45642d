"""The command on other schedules, given orders and switch bounds: plans are replayed, and refusals are sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline

sys.path.insert(0, str(Path(__file__).parent))
from conftest import A100, GENERATED, profile_for, shaped
from test_command import run

FIXED = (Instruction.LOAD, Instruction.P2P, Instruction.ALLREDUCE, Instruction.OPTIMIZER)


def written(profile: Profile, folder: Path) -> Path:
    """A profile as files."""
    rows = [
        f"{stage},{instruction.value},{each.frequency_megahertz},{each.time_seconds!r},{each.energy_joules!r}"
        for (stage, instruction), entries in profile.measurements.items()
        for each in entries
    ]
    (folder / "profile.csv").write_text("\n".join(["stage,instruction,frequency,time,energy", *rows]) + "\n")
    (folder / "header.json").write_text(profile.header.model_dump_json(by_alias=True, exclude_none=True))
    return folder


def with_fixed(profile: Profile, stages: int) -> Profile:
    fixed = {(stage, kind): (Measurement(0, 0.003, 0.5),) for stage in range(stages) for kind in FIXED}
    gpus = [{"blocking_power_watts": 50.0 + 10 * rank} for rank in range(stages)]
    header = profile.header.model_validate({**profile.header.model_dump(), "stage_gpus": gpus})
    return Profile(header, dict(sorted({**profile.measurements, **fixed}.items())))


@pytest.mark.parametrize("schedule", GENERATED)
def test_verify_agrees_on_every_schedule_with_fixed_instructions_mixed_gpus_and_switch_costs(
    tmp_path: Path, schedule: Schedule
) -> None:
    pipeline = shaped(3, 6, schedule)
    profile = with_fixed(profile_for(pipeline, 7, clocks=4), pipeline.virtual_stages)
    folder, path = written(profile, tmp_path), tmp_path / "plan.json"
    options = ["--stages", "3", "--microbatches", str(pipeline.microbatches), "--schedule", schedule.value.upper()]
    options += ["--chunks", str(pipeline.chunks), "--switches-per-second", "3", "--switch-seconds", "0.002"]
    options += ["--max-slowdown-percent", "2", "--format", "json", "--output", str(path), "--profile", str(folder)]
    result = run("plan", *options)
    assert result.exit_code == 0, result.output
    checked = run("verify", str(path), "--profile", str(folder), "--format", "json")
    assert checked.exit_code == 0, checked.output
    told = json.loads(checked.stdout)
    assert told["agrees"]
    assert told["keeps_switch_bound"]
    assert told["switches_per_second"] <= 3


def test_orders_from_a_file_are_planned(tmp_path: Path) -> None:
    path = tmp_path / "orders.json"
    path.write_text(json.dumps({"order": ["FFBB", "FBFB"], "microbatches": [[0, 1, 0, 1], [0, 0, 1, 1]]}))
    result = run("plan", "--profile", str(A100), "--orders", str(path), "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schedule"] == Schedule.CUSTOM.value
    assert [[each["microbatch"] for each in row] for row in found["stages"]] == [[0, 1, 0, 1], [0, 0, 1, 1]]


def test_a_switch_bound_is_told_with_its_price() -> None:
    result = run("plan", "--profile", str(A100), "--stages", "4", "--microbatches", "4", "--switches-per-second", "2")
    assert result.exit_code == 0, result.output
    assert "the bound on that costs" in result.output


@pytest.mark.parametrize(
    ("orders", "sentence"),
    [
        ("[]", "mine.json: the orders must be a JSON object"),
        ('{"order": ["FB"], "microbatches": [[0]]}', "stage 0 must have one entry for each of its 2 letters"),
        ('{"order": ["BF"], "microbatches": [[0, 0]]}', "the orders wait for each other: stage 0 entry"),
        ('{"order": ["FFB"], "microbatches": [[0, 0, 0]]}', "twice: entries 0 and 1"),
        ('{"order": ["FB", "FB"], "microbatches": [[0, 0], [1, 1]]}', "which never runs"),
    ],
)
def test_bad_orders_are_refused_with_file_entry_and_fix(tmp_path: Path, orders: str, sentence: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(orders)
    result = run("plan", "--profile", str(A100), "--orders", str(path))
    assert result.exit_code == 2
    assert sentence in result.output
    assert "mine.json" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--microbatches is missing"),
        (["--microbatches", "4", "--schedule", "Custom"], "need --orders"),
        (["--microbatches", "4", "--schedule", "zbv", "--chunks", "3"], "set chunks to 2"),
        (["--microbatches", "4096", "--stages", "256", "--chunks", "2"], "lower one of them"),
        (["--microbatches", "9", "--stages", "4", "--schedule", "interleaved1f1b"], "--schedule Interleaved1F1B"),
        (["--microbatches", "4", "--schedule", "zbh1"], "no backward_input of stage 0"),
        (["--microbatches", "4", "--switches-per-second", "-1"], "not in the range"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    for command in ("plan", "frontier", "show") if "--switches-per-second" not in arguments else ("plan",):
        result = run(command, "--profile", str(A100), *arguments)
        assert result.exit_code == 2, result.output
        assert sentence in result.output
        assert "Traceback" not in result.output


def test_times_in_the_wrong_unit_are_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(2, 2)
    profile = profile_for(pipeline, 1, clocks=3)
    huge = {
        key: tuple(Measurement(each.frequency_megahertz, each.time_seconds * 1e9, each.energy_joules) for each in rows)
        for key, rows in profile.measurements.items()
    }
    folder = written(Profile(profile.header, huge), tmp_path)
    result = run("plan", "--profile", str(folder), "--microbatches", "2")
    assert result.exit_code == 2
    assert "the profile's times are in seconds; measure again" in result.output
