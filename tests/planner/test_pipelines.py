"""Data-parallel pipelines of different profiles: one iteration time for all, a plan of its own for each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from perseus_api.profile import Measurement, Profile
from perseus_planner import (
    Deadline,
    MaximumSlowdown,
    MinimumEnergy,
    NoSlowdown,
    Pipeline,
    PlannedPipelines,
    PlanningError,
    PowerBudget,
    Straggler,
    plan,
    plan_pipelines,
)

sys.path.insert(0, str(Path(__file__).parent))
from conftest import random_profile

SHAPE = Pipeline(3, 5)


def slower(profile: Profile, factor: float) -> Profile:
    return Profile(
        profile.header,
        {
            key: tuple(
                Measurement(each.frequency_megahertz, each.time_seconds * factor, each.energy_joules * factor)
                for each in rows
            )
            for key, rows in profile.measurements.items()
        },
    )


FAST = random_profile(3, 3, 8)
SLOW = slower(FAST, 1.2)


def planned(objective: object) -> PlannedPipelines:
    return plan_pipelines([(FAST, SHAPE), (SLOW, SHAPE)], objective, steps=20_000)  # type: ignore[arg-type]


def test_the_fast_pipeline_is_stretched_to_the_slow_one() -> None:
    found = planned(NoSlowdown())
    fast, slow = found.plans
    assert found.iteration_seconds <= found.fastest_seconds * (1 + 1e-9)
    assert slow.slowdown_percent <= 1e-9
    assert 5 < fast.slowdown_percent <= 20 + 1e-6
    alone = plan(SLOW, SHAPE, NoSlowdown(), steps=20_000)
    assert slow.iteration_joules == pytest.approx(alone.iteration_joules, rel=1e-3)
    assert found.savings_percent > alone.savings_percent


def test_energy_counts_the_wait_for_the_slowest() -> None:
    found = planned(NoSlowdown())
    watts = 3 * FAST.header.blocking_power_watts
    expected = sum(
        each.iteration_joules + watts * (found.iteration_seconds - each.iteration_seconds) for each in found.plans
    )
    assert found.iteration_joules == pytest.approx(expected)


def test_pipelines_that_are_alike_get_what_one_alone_gets() -> None:
    found = plan_pipelines([(FAST, SHAPE), (FAST, SHAPE)], MaximumSlowdown(3), steps=5_000)
    assert found.plans[0].plan == found.plans[1].plan
    assert found.savings_percent == pytest.approx(found.plans[0].savings_percent)


def test_objectives_hold_for_all_together() -> None:
    fastest = planned(NoSlowdown()).fastest_seconds
    assert planned(MaximumSlowdown(5)).iteration_seconds <= 1.05 * fastest * (1 + 1e-9)
    assert planned(Deadline(1.1 * fastest)).iteration_seconds <= 1.1 * fastest
    least = planned(MinimumEnergy())
    assert least.iteration_joules <= planned(MaximumSlowdown(5)).iteration_joules * (1 + 1e-3)
    stretched = planned(Straggler(100 * fastest))
    assert stretched.iteration_seconds < 3 * fastest  # never past the last T*
    middle = (least.iteration_joules / least.iteration_seconds + planned(NoSlowdown()).iteration_joules / fastest) / 2
    found = planned(PowerBudget(middle))
    assert found.iteration_joules / found.iteration_seconds <= middle


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    with pytest.raises(PlanningError, match="at least one"):
        plan_pipelines([], NoSlowdown())
    with pytest.raises(PlanningError, match="the slowest pipeline takes"):
        planned(Deadline(1e-3))
    with pytest.raises(PlanningError, match="raise the power budget"):
        planned(PowerBudget(1.0))
