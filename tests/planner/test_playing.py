"""Orders played without numpy: as long as the tests' own player says, and stuck where the graph has a circle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline
from perseus_planner.playing import play

sys.path.insert(0, str(Path(__file__).parent))
from player import seconds_of

SHAPES = [
    Pipeline(4, 8),
    Pipeline(4, 8, Schedule.GPIPE),
    Pipeline(4, 8, Schedule.EARLY_RECOMPUTE_1F1B),
    Pipeline(4, 8, Schedule.INTERLEAVED_1F1B, chunks=3),
    Pipeline(3, 6, Schedule.ZB_H1, chunks=2),
    Pipeline(4, 9, Schedule.ZBV, chunks=2),
    Pipeline(1, 3, Schedule.ZBV, chunks=2),
]
SECONDS = {
    Instruction.FORWARD: 1.0,
    Instruction.BACKWARD: 2.25,
    Instruction.BACKWARD_INPUT: 1.5,
    Instruction.BACKWARD_WEIGHT: 0.75,
    Instruction.RECOMPUTE: 0.875,
}


@pytest.mark.parametrize("pipeline", SHAPES, ids=lambda each: f"{each.schedule.value}-{each.stages}")
def test_every_schedule_takes_as_long_as_it_does_step_by_step(pipeline: Pipeline) -> None:
    played = play(pipeline, lambda _, step: SECONDS[step.instruction])
    assert played.stuck == ()
    assert played.seconds == pytest.approx(seconds_of(pipeline, SECONDS))


def test_orders_that_wait_for_each_other_are_stuck_where_they_wait() -> None:
    zbv = Pipeline(4, 8, Schedule.ZBV, chunks=2)
    as_a_loop = Pipeline(4, 8, Schedule.CUSTOM, chunks=2, orders_given=zbv.orders())
    played = play(as_a_loop, lambda *_: 1.0)
    assert played.stuck
    for rank, position in played.stuck:
        assert zbv.orders()[rank][position].chunk == 1
