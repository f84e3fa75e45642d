"""Plans under a bound on clock switches: the bound, the limit and every figure hold when the plan is replayed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_api.profile import Profile
from perseus_api.schedules import Schedule
from perseus_planner import MaximumSlowdown, NoSlowdown, Pipeline, PlanningError, SwitchBound, plan
from perseus_planner.planning import Planned
from perseus_planner.replay import Replay, ReplayStep, replay

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, profile_for, shaped


def replayed(profile: Profile, found: Planned) -> Replay:
    rows = [
        [ReplayStep(each.instruction, each.microbatch, each.stage, each.frequency_megahertz) for each in row]
        for row in found.steps
    ]
    bound = found.switching.bound
    return replay(profile, rows, bound.seconds, bound.joules)


@given(
    seed=st.integers(0, 1000),
    schedule=st.sampled_from(GENERATED),
    per_second=st.floats(0, 40) | st.none(),
    seconds=st.floats(0, 0.02),
    joules=st.floats(0, 2),
    percent=st.floats(0, 20),
)
@settings(max_examples=40, deadline=None)
def test_the_bound_the_limit_and_all_figures_hold_in_a_replay(
    seed: int, schedule: Schedule, per_second: float | None, seconds: float, joules: float, percent: float
) -> None:
    pipeline = shaped(1 + seed % 4, 1 + seed % 5, schedule)
    profile = profile_for(pipeline, seed, clocks=4)
    found = plan(
        profile, pipeline, MaximumSlowdown(percent), steps=500, switches=SwitchBound(per_second, seconds, joules)
    )
    seen = replayed(profile, found)
    assert seen.seconds == pytest.approx(found.iteration_seconds, rel=1e-9)
    assert seen.joules == pytest.approx(found.iteration_joules, rel=1e-9)
    assert seen.switches == found.switching.switches
    assert seen.seconds <= found.limit_seconds * (1 + 1e-9)
    assert found.free is not None
    if per_second is not None:
        assert max(seen.switches) <= per_second * seen.seconds * (1 + 1e-9)


def test_fewer_switches_save_less_and_the_plan_says_how_much(a100: Profile) -> None:
    free = plan(a100, Pipeline(8, 12), NoSlowdown())
    assert free.switch_cost_points == 0.0
    assert free.switching.per_second > 6
    savings = []
    for per_second in (1.0, 2.0, 4.0):
        found = plan(a100, Pipeline(8, 12), NoSlowdown(), switches=SwitchBound(per_second))
        assert found.switching.per_second <= per_second
        assert found.switch_cost_points == pytest.approx(free.savings_percent - found.savings_percent, abs=0.02)
        savings.append(found.savings_percent)
    assert savings == sorted(savings)
    assert savings[0] > 5
    assert savings[2] > 14


def test_a_switch_that_costs_much_is_made_seldom(a100: Profile) -> None:
    cheap, dear = (
        plan(a100, Pipeline(8, 12), MaximumSlowdown(1), switches=SwitchBound(None, 0.0, joules))
        for joules in (0.0, 5.0)
    )
    assert sum(dear.switching.switches) < sum(cheap.switching.switches)


def test_without_any_switch_nothing_is_saved_where_every_rank_is_critical(a100: Profile) -> None:
    found = plan(a100, Pipeline(8, 12), NoSlowdown(), switches=SwitchBound(0.0))
    assert found.switching.switches == (0,) * 8
    assert found.savings_percent >= 0
    assert len({step.frequency_megahertz for step in found.steps[0]}) == 1


def test_a_bound_that_cannot_be_kept_is_answered_with_a_sentence() -> None:
    """Each instruction's highest clock is another one, and no clock was measured for both."""
    pipeline = Pipeline(1, 2)
    profile = profile_for(pipeline, 1, clocks=2)
    (first, rows), (second, others) = profile.measurements.items()
    shifted = tuple(type(each)(each.frequency_megahertz + 1, each.time_seconds, each.energy_joules) for each in others)
    with pytest.raises(PlanningError, match=r"no plan was found .* at most 0.0 switches a second"):
        plan(Profile(profile.header, {first: rows, second: shifted}), pipeline, NoSlowdown(), switches=SwitchBound(0.0))
