"""Invariant 1 at random moments: a short run of `make bench-kills`, which kills a thousand times."""

from __future__ import annotations

from pathlib import Path

from benchmarks import kills


def test_thirty_deaths_at_random_moments_leave_no_lock(simulator_library: Path, tmp_path: Path) -> None:
    seen = kills.run(tmp_path, kills=30, seed=20261124)
    assert seen["kills"] >= 30
    assert seen["locked_when_killed"] >= 10, "hardly anything was locked: the run proves little"
    assert seen["left"] == []
    assert seen["bystanders_touched"] == 0
