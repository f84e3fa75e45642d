"""Observed over expected time of a stage's instructions: the clock that was asked for decides what is expected."""

from __future__ import annotations

import pytest
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_daemonset.follower import RankPlan
from perseus_daemonset.instructions import InstructionBooks, InstructionTimes

TIMES = {"F": {810: 2.0, 1410: 1.0}, "F1": {810: 4.0, 1410: 3.0}, "O": {0: 0.5}}
PLAN = RankPlan(1, 1, "FB", (810, 1005), 80.0, 1.0, 5.0, seconds=TIMES)
FORWARD = Instruction.FORWARD


def run(
    books: InstructionBooks, seconds: float, clock: int | None, what: Instruction = FORWARD, chunk: int = 0
) -> InstructionTimes:
    """Run one instruction under PLAN; return the sums of its kind."""
    books.take(Boundary(BoundaryKind.INSTRUCTION_BEGIN, 1, 10**9, what, chunk=chunk), clock, PLAN)
    end = 10**9 + int(seconds * 1e9)
    books.take(Boundary(BoundaryKind.INSTRUCTION_END, 1, end, what, chunk=chunk), clock, PLAN)
    return books.times[what]


@pytest.mark.parametrize(("clock", "expected"), [(810, 2.0), (1410, 1.0), (None, 1.0)])
def test_an_instruction_is_compared_at_the_clock_that_was_asked_for(clock: int | None, expected: float) -> None:
    assert run(InstructionBooks(), 2.4, clock) == InstructionTimes(1, 2.4, 2.4, expected)


def test_a_model_chunk_has_times_of_its_own() -> None:
    assert run(InstructionBooks(), 4.0, 810, chunk=1).expected_seconds == 4.0


def test_an_instruction_without_a_clock_is_expected_whatever_the_clock() -> None:
    assert run(InstructionBooks(), 0.6, 810, Instruction.OPTIMIZER).expected_seconds == 0.5


def test_what_the_plan_does_not_know_is_counted_and_not_compared() -> None:
    books = InstructionBooks()
    assert run(books, 1.5, 1005) == InstructionTimes(1, 1.5)
    assert run(books, 1.5, 810, Instruction.BACKWARD) == InstructionTimes(1, 1.5)


def test_a_clock_changed_under_an_instruction_leaves_nothing_to_compare() -> None:
    books = InstructionBooks()
    books.take(Boundary(BoundaryKind.INSTRUCTION_BEGIN, 1, 0, FORWARD), 810, PLAN)
    books.take(Boundary(BoundaryKind.INSTRUCTION_END, 1, 10**9, FORWARD), None, PLAN)
    assert books.times[FORWARD] == InstructionTimes(1, 1.0)


def test_ends_without_their_begin_are_not_counted() -> None:
    books = InstructionBooks()
    books.take(Boundary(BoundaryKind.INSTRUCTION_END, 1, 10**9, FORWARD), 810, PLAN)
    books.take(Boundary(BoundaryKind.INSTRUCTION_BEGIN, 1, 0, FORWARD, 3), 810, PLAN)
    books.take(Boundary(BoundaryKind.INSTRUCTION_END, 1, 10**9, FORWARD, 4), 810, PLAN)
    books.take(Boundary(BoundaryKind.INSTRUCTION_BEGIN, 1, 0, FORWARD), 810, PLAN)
    books.interrupted()
    books.take(Boundary(BoundaryKind.INSTRUCTION_END, 1, 10**9, FORWARD), 810, PLAN)
    assert books.times == {}
