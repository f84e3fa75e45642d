"""The ``perseus`` command as a person uses it: what it prints, and how it refuses."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perseus_api.profile import Profile
from perseus_planner import Pipeline, exact_frontier
from perseus_planner.command import main

sys.path.insert(0, str(Path(__file__).parent))
from conftest import A100

SHAPE = ("--profile", str(A100), "--stages", "8", "--microbatches", "12", "--schedule", "1f1b")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def planned(*arguments: str) -> dict[str, object]:
    result = run("plan", *SHAPE, "--format", "json", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_a_plan_as_json_holds_every_instruction_in_order_of_execution() -> None:
    found = planned("--blocking-power-watts", "83.64")
    assert [len(row) for row in found["stages"]] == [24] * 8
    first = found["stages"][0][0]
    assert (first["instruction"], first["microbatch"]) == ("forward", 0)
    assert {"frequency", "seconds", "joules"} <= set(first)
    assert found["iteration_seconds"] <= found["fastest"]["iteration_seconds"]
    assert found["savings_percent"] == pytest.approx(
        100 * (1 - found["iteration_joules"] / found["fastest"]["iteration_joules"])
    )
    assert found["gap_points"] == pytest.approx(found["bound_savings_percent"] - found["savings_percent"])
    assert found["slowdown_percent"] <= 0


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (["--max-slowdown-percent", "5"], 1.05),
        (["--deadline-seconds", "3.0"], 3.0 / 2.836510754),
        (["--objective", "min-energy"], 1.6),
        (["--power-budget-watts", "2000"], 1.6),
        (["--straggler-seconds", "3.4"], 3.4 / 2.836510754),
    ],
)
def test_every_objective_saves_more_than_none(options: list[str], limit: float) -> None:
    found = planned(*options)
    assert found["savings_percent"] > 16.1
    assert found["iteration_seconds"] <= limit * found["fastest"]["iteration_seconds"] * (1 + 1e-9)


def test_a_power_budget_is_kept_and_not_undercut_by_more_than_it_must() -> None:
    found = planned("--power-budget-watts", "2000")
    assert 1980 <= found["iteration_joules"] / found["iteration_seconds"] <= 2000


def test_tensor_parallel_ranks_multiply_the_energy() -> None:
    one, eight = planned(), planned("--tensor-parallel", "8")
    assert eight["iteration_joules"] == pytest.approx(8 * one["iteration_joules"])
    assert eight["savings_percent"] == pytest.approx(one["savings_percent"])


def test_a_plan_as_text_says_what_it_saves_and_draws_the_pipeline() -> None:
    result = run("plan", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "saves 15.9" in result.output
    assert "+0.00 % time" in result.output
    assert "rank   7 |" in result.output


def test_the_frontier_as_csv_has_every_breakpoint(a100: Profile) -> None:
    result = run("frontier", *SHAPE, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    seconds, joules = exact_frontier(a100, Pipeline(8, 12))
    assert list(rows[0]) == ["time", "energy"]
    assert [float(row["time"]) for row in rows] == pytest.approx(seconds.tolist(), abs=1e-9)
    assert [float(row["energy"]) for row in rows] == pytest.approx(joules.tolist(), rel=1e-12)


def test_realised_plans_lie_on_or_above_the_exact_frontier() -> None:
    result = run(
        "frontier", "--profile", str(A100), "--stages", "4", "--microbatches", "4", "--realised", "--format", "json"
    )
    exact = run("frontier", "--profile", str(A100), "--stages", "4", "--microbatches", "4", "--format", "json")
    least = min(each["energy"] for each in json.loads(exact.stdout))
    points = json.loads(result.stdout)
    assert len(points) > 50
    assert min(each["energy"] for each in points) == pytest.approx(least, rel=0.01)
    assert all(each["energy"] >= least * (1 - 1e-9) for each in points)


def test_verify_agrees_with_the_planner(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert run("plan", *SHAPE, "--format", "json", "--output", str(path)).exit_code == 0
    result = run("verify", str(path), "--profile", str(A100))
    assert result.exit_code == 0, result.output
    assert "figures agree, limit kept" in result.output


@pytest.mark.parametrize("field", ["iteration_joules", "iteration_seconds"])
def test_verify_finds_a_figure_that_is_not_true(tmp_path: Path, field: str) -> None:
    path = tmp_path / "plan.json"
    found = planned()
    path.write_text(json.dumps({**found, field: float(str(found[field])) * 0.999}))
    result = run("verify", str(path), "--profile", str(A100))
    assert result.exit_code == 1
    assert "DO NOT agree" in result.output


def test_verify_finds_a_clock_that_breaks_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    found = planned()
    found["stages"][7][5]["frequency"] = 1200
    path.write_text(json.dumps(found))
    result = run("verify", str(path), "--profile", str(A100))
    assert result.exit_code == 1
    assert "limit NOT kept" in result.output


def test_verify_names_the_rank_that_would_wait_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    found = planned()
    found["stages"][3].reverse()
    path.write_text(json.dumps(found))
    result = run("verify", str(path), "--profile", str(A100))
    assert result.exit_code == 2
    assert "waits for ever before entry" in result.output


def test_show_draws_pictures_and_text(tmp_path: Path) -> None:
    result = run("show", *SHAPE, "--max-slowdown-percent", "1", "--output", str(tmp_path / "pictures"))
    assert result.exit_code == 0, result.output
    assert "rank   0 |" in result.output
    names = {each.name for each in (tmp_path / "pictures").iterdir()}
    assert names == {"frontier.png", "frontier.svg", "timeline.png", "timeline.svg"}
    assert (tmp_path / "pictures" / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "pictures" / "frontier.svg").read_text()


HEADER = "stage,instruction,frequency,time,energy\n"
GOOD = HEADER + "".join(
    f"0,{kind},{clock},{1000 / clock},{clock / 10}\n" for kind in ("forward", "backward") for clock in (1000, 800)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stage,what\n0,1\n", "must name the columns"),
        (GOOD.replace("1.25", "nan", 1), "row 3: time must be a positive number"),
        (GOOD.replace("1.25", "-1", 1), "row 3: time must be a positive number"),
        (GOOD.replace("1.25", "0", 1), "row 3: time must be a positive number"),
        (
            HEADER + "0,forward,1000,1,1\n0,backward,1000,1,1\n0,backward,900,2,1\n",
            "only one clock for stage 0 forward",
        ),
        (GOOD + "0,forward,800,1.25,80\n", "row 6 measures stage 0 forward at 800 MHz a second time"),
        (GOOD.replace("0,", "1,"), "no row for stage 0"),
        ("", "must name the columns"),
    ],
)
def test_a_bad_profile_is_refused_with_file_row_and_fix(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    result = run("plan", "--profile", str(path), "--microbatches", "2", "--blocking-power-watts", "50")
    assert result.exit_code == 2
    assert sentence in result.output
    assert "mine.csv" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--microbatches", "12", "--stages", "9"], "gpt3-175b-a100-sxm: the profile has no forward of stage 8"),
        (["--microbatches", "12", "--deadline-seconds", "nan"], "'--deadline-seconds': nan is not a number"),
        (["--microbatches", "12", "--max-slowdown-percent", "nan"], "'--max-slowdown-percent': nan is not a number"),
        (["--microbatches", "12", "--switches-per-second", "nan"], "'--switches-per-second': nan is not a number"),
        (["--microbatches", "12", "--power-budget-watts", "nan"], "'--power-budget-watts': nan is not a number"),
        (["--microbatches", "12", "--blocking-power-watts", "nan"], "'--blocking-power-watts': nan is not a number"),
        (["--microbatches", "0"], "0 is not in the range"),
        (["--microbatches", "12", "--schedule", "2f2b"], "--schedule 2f2b is unknown: use one of 1F1B"),
        (["--microbatches", "4", "--deadline-seconds", "3", "--objective", "min-energy"], "exclude each other"),
        (["--microbatches", "12", "--deadline-seconds", "1"], "the deadline of 1 s cannot be kept"),
        (["--microbatches", "12", "--power-budget-watts", "100"], "no plan draws at most 100 W"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    result = run("plan", "--profile", str(A100), *arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_missing_file_and_a_profile_without_blocking_power_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in run("plan", "--profile", "nowhere.csv", "--microbatches", "2").output
    path = tmp_path / "bare.csv"
    path.write_text(GOOD)
    result = run("plan", "--profile", str(path), "--microbatches", "2")
    assert result.exit_code == 2
    assert "give --blocking-power-watts" in result.output


@given(
    text=st.text(max_size=300) | st.text(alphabet="0123456789,.-einfa\n", max_size=300).map(lambda each: HEADER + each)
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_profile_there_is_no_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    result = run("plan", "--profile", str(path), "--microbatches", "2", "--blocking-power-watts", "50")
    assert result.exit_code in (0, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
