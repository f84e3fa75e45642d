"""A sweep with everything real but the API server: agent, NVML binding, trainer library, one process for each rank.

The processes run with real-time priority (root may), since a simulated GPU takes the processor's time to be on time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from perseus_api.schedules import Schedule
from perseus_operator.profiling.merging import blocking_power
from perseus_operator.profiling.sweeping import SweepSettings
from perseus_operator.profiling.waiting import BLOCKING_ERROR
from perseus_planner import Pipeline
from perseus_simulator.testing import SPLIT, WHOLE, example_profile

from benchmarks.profiling.measure import count_wrong_labels
from benchmarks.profiling.rig import running_job

NOISE = {"time_noise": 0.01, "power_noise": 0.01}
BRIEF = SweepSettings(bound=0.5, only=(1410, 1005), seconds=3.0)


def test_every_label_is_right_at_every_window_size() -> None:
    assert count_wrong_labels(clocks=(1410, 1380, 1005), windows=(1, 3)) == 0


@pytest.mark.parametrize(
    ("pipeline", "waits"),
    [(Pipeline(2, 8, Schedule.ZBV, chunks=2), True), (Pipeline(2, 8), False)],
    ids=["ZBV", "1F1B"],
)
def test_the_power_of_waiting_is_right_of_ranks_that_hardly_wait_and_of_ranks_that_do(
    pipeline: Pipeline, waits: bool, simulator_library: Path, tmp_path: Path
) -> None:
    truth = example_profile(pipeline.virtual_stages, 0.02, SPLIT if waits else WHOLE)
    rounds: list[str] = []
    with running_job(tmp_path, truth, pipeline, **NOISE) as rig:
        found = rig.sweep(BRIEF, "waiting", first_iteration=3, tell=rounds.append)
    assert any("ranks wait for one another" in each for each in rounds) is waits
    power = blocking_power(found.measured.blocking["Simulated A100"])
    assert power is not None
    assert power.watts_stderr <= BLOCKING_ERROR * power.watts
    assert power.watts == pytest.approx(truth.header.blocking_power_watts, rel=0.02)
