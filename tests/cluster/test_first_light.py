"""The demonstration's own story, held to the figures that the project promises: GPT-3 175B on 16 simulated A100s.

Energies are NVML counter differences, times are the trainers'; the report is the one that ``make demo`` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo.picture import draw_run
from demo.scenario import HOT_SLOWDOWN, JOB, MEASURED_EXAMPLE, Run
from testbed.execution import wait_until
from testbed.installation import Installation

pytestmark = pytest.mark.cluster
BEYOND_A_SCRAPE_SECONDS = 2.0
LEAST_HEALTHY_SAVINGS_PERCENT = 24.5
# No plan of this profile saves more beside a pipeline that is slower by HOT_SLOWDOWN (docs/stragglers.md, the bound).
HEALTHY_BOUND_PERCENT = 27.4
MAXIMUM_SWEEP_SLOWDOWN_PERCENT = 10.0  # spec.profiling.maxSlowdownPercent of the example


@pytest.fixture(scope="module")
def report(demonstration: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the demonstration writes, read back."""
    run = demonstration
    folder = tmp_path_factory.mktemp("demo")
    run.report.write(folder / "report.json")
    draw_run(run.samples, list(run.report.phases), run.events, folder / "run.png")
    assert (folder / "run.png").stat().st_size > 10_000
    print(run.report.table())
    Path("build/test-report.json").parent.mkdir(exist_ok=True)
    Path("build/test-report.json").write_text((folder / "report.json").read_text())
    document: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return document


def test_the_story_ran_on_a_real_kubernetes_with_sixteen_gpus(report: dict[str, Any]) -> None:
    assert report["kubernetes"].startswith("v1.36")
    assert report["gpus"] == 16
    assert [phase["name"] for phase in report["phases"]] == ["baseline", "planned", "straggler", "recovered"]
    assert all(phase["iterations"] >= 3 for phase in report["phases"])


def test_the_profile_was_measured_while_the_job_trained(report: dict[str, Any]) -> None:
    assert report["profiling"]["clocks"] >= 5
    assert report["profiling"]["iterations_lost"] == 0
    assert 0 < report["profiling"]["slowdown_percent"] <= MAXIMUM_SWEEP_SLOWDOWN_PERCENT


def test_the_plan_saves_at_least_fourteen_percent(report: dict[str, Any]) -> None:
    assert report["savings_percent"] >= 14.0


def test_the_plan_costs_at_most_one_percent_of_time(report: dict[str, Any]) -> None:
    assert report["slowdown_percent"] <= 1.0


def test_measured_savings_stay_below_what_is_physically_possible(report: dict[str, Any]) -> None:
    """Savings above the relaxation's bound would mean that energy is not counted."""
    assert report["savings_percent"] <= report["bound_savings_percent"] + 1.0


def test_the_healthy_pipeline_saves_a_quarter_while_the_other_one_is_hot(report: dict[str, Any]) -> None:
    """With the nine clocks that were measured in the job; a given profile with all clocks saves 0.3 points more."""
    assert report["straggler"]["injected_slowdown"] == HOT_SLOWDOWN
    assert report["straggler"]["pipeline_slowdown"] > 1.05
    assert LEAST_HEALTHY_SAVINGS_PERCENT <= report["straggler"]["savings_percent"] <= HEALTHY_BOUND_PERCENT


def test_a_straggler_reaches_all_agents_within_a_scrape_interval_and_two_seconds(report: dict[str, Any]) -> None:
    limit = report["scrape_interval_seconds"] + BEYOND_A_SCRAPE_SECONDS
    assert report["straggler"]["detected_after_seconds"] <= report["straggler"]["all_agents_after_seconds"] <= limit


def test_recovery_reaches_all_agents_as_fast(report: dict[str, Any]) -> None:
    limit = report["scrape_interval_seconds"] + BEYOND_A_SCRAPE_SECONDS
    assert report["straggler"]["recovery_all_agents_after_seconds"] <= limit


def test_the_fast_plan_is_back_after_recovery(report: dict[str, Any]) -> None:
    planned, recovered = (
        next(each for each in report["phases"] if each["name"] == name) for name in ("planned", "recovered")
    )
    assert recovered["iteration_seconds"] == pytest.approx(planned["iteration_seconds"], rel=0.015)
    assert recovered["iteration_joules"] == pytest.approx(planned["iteration_joules"], rel=0.02)


def test_clocks_were_changed_and_none_is_left_locked(report: dict[str, Any]) -> None:
    assert report["clock_changes"] > 0
    assert report["locks_left"] == 0


def test_deletion_leaves_no_object(report: dict[str, Any]) -> None:
    assert report["objects_left"] == []


def test_the_next_job_of_its_kind_finds_the_profile(installation: Installation, report: dict[str, Any]) -> None:
    folder = str(installation.overlay(MEASURED_EXAMPLE))
    installation.kubectl("apply", "-n", "default", "-k", folder)
    source = ("get", "perseusjob", JOB, "-n", "default", "-o", "jsonpath={.status.profile.source}")
    try:
        wait_until("the profile", lambda: installation.kubectl(*source) != "", timeout_seconds=120, period_seconds=1)
        assert installation.kubectl(*source) == "Cached"
    finally:
        installation.kubectl("delete", "-n", "default", "-k", folder, "--timeout=60s")
