"""Measuring a rank against a device that is known: what the rows say is what ran, at the clock that really held."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_daemonset.measuring.counter import Refresh, RefreshFinder
from perseus_daemonset.measuring.measurer import Measurer
from perseus_daemonset.measuring.regression import PowerFit
from perseus_daemonset.measuring.steadiness import Steadiness
from perseus_daemonset.measuring.times import Times

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
FORWARD, BACKWARD = Instruction.FORWARD, Instruction.BACKWARD
BLOCKING_WATTS = 80.0
ORDER = (FORWARD, FORWARD, BACKWARD, FORWARD, BACKWARD, BACKWARD)


def seconds(instruction: Instruction, clock: int, chunk: int = 0) -> float:
    return (0.03 if instruction is FORWARD else 0.07) * (1 + chunk / 2) * 1410 / clock


def watts(instruction: Instruction, clock: int, chunk: int = 0) -> float:
    return (200 if instruction is FORWARD else 260) * (1 - chunk / 4) * (clock / 1410) ** 2 + 60


@dataclass
class Device:
    """A GPU in exact time: its clock changes late, its counter refreshes every 100 ms, it is looked at every 20 ms."""

    measurer: Measurer
    delay: int
    celsius: float = 60.0
    now: int = SECOND
    joules: float = 0.0
    in_force: int | None = None
    requested: int | None = None
    effective: int = 0
    next_refresh: int = SECOND
    next_look: int = SECOND
    cap: int | None = None
    ran: dict[tuple[Instruction, int], int] = field(default_factory=dict)
    chunks: tuple[int, ...] = (0,) * len(ORDER)

    def request(self, clock: int | None) -> None:
        if clock != self.requested:
            self.requested, self.effective = clock, self.now + self.delay
            self.measurer.request(self.now, clock)

    def clock(self) -> int:
        if self.now >= self.effective:
            self.in_force = self.requested
        held = self.in_force or 1410
        return min(held, self.cap) if self.cap else held

    def burn(self, step: int, power: float) -> None:
        """Let time pass."""
        while self.next_refresh <= self.now + step:
            before = (self.next_refresh - self.now) / SECOND * power
            self.measurer.refresh(Refresh(self.next_refresh, self.joules + before))
            self.next_refresh += 100 * MILLISECOND
        self.joules += step / SECOND * power
        self.now += step

    def spend(self, instruction: Instruction | None, share: float = 1.0, chunk: int = 0) -> None:
        """Run an instruction (None: wait for 20 ms), in small steps so that a clock that changes is felt."""
        done = 0.0
        while done < share:
            clock = self.clock()
            step = MILLISECOND // 4
            needed = 0.02 if instruction is None else seconds(instruction, clock, chunk)
            rest = round((share - done) * needed * SECOND)
            step = min(step, max(rest, 1))
            power = BLOCKING_WATTS if instruction is None else watts(instruction, clock, chunk)
            self.burn(step, power)
            done += step / SECOND / needed if step < rest else share
            if self.now >= self.next_look:
                self.next_look = self.now + 20 * MILLISECOND
                self.measurer.look(self.now, self.now, self.clock(), self.celsius, True)

    def iteration(self, number: int, clock: int) -> None:
        work = (clock,) * len(ORDER)
        self.measurer.boundary(Boundary(BoundaryKind.ITERATION_BEGIN, number, self.now), work)
        self.request(clock)
        for index, (instruction, chunk) in enumerate(zip(ORDER, self.chunks, strict=True)):
            self.spend(None, share=0.5 + index % 3)
            told = (instruction, index, chunk)
            self.measurer.boundary(Boundary(BoundaryKind.INSTRUCTION_BEGIN, number, self.now, *told), work)
            self.spend(instruction, chunk=chunk)
            self.measurer.boundary(Boundary(BoundaryKind.INSTRUCTION_END, number, self.now, *told), work)
        self.spend(None)
        self.measurer.boundary(Boundary(BoundaryKind.ITERATION_END, number, self.now), work)


def steady(device: Device, clock: int = 1410) -> int:
    """Run until the temperature is known to stand still; return the next iteration."""
    number = 0
    while not device.measurer.is_steady:
        device.iteration(number, clock)
        number += 1
        assert number < 100
    return number


@settings(max_examples=15, deadline=None)
@given(
    window=st.integers(1, 4),
    delay=st.integers(0, 150 * MILLISECOND),
    clocks=st.lists(st.sampled_from(range(810, 1411, 15)), min_size=2, max_size=4, unique=True),
)
def test_every_row_is_labelled_with_the_clock_that_held(window: int, delay: int, clocks: list[int]) -> None:
    device = Device(Measurer("m"), delay)
    number = steady(device)
    for turn in range(3 * len(clocks)):
        for _ in range(window):
            device.iteration(number, clocks[turn % len(clocks)])
            number += 1
    rows, _ = device.measurer.rows()
    assert {row.frequency_megahertz for row in rows} <= {1410, *clocks}
    for row in rows:
        assert row.time_seconds == pytest.approx(seconds(row.instruction, row.frequency_megahertz), rel=1e-3)


def test_energy_comes_from_the_counters_refreshes_alone() -> None:
    device = Device(Measurer("m"), 20 * MILLISECOND)
    number = steady(device)
    for clock in (1410, 1200, 1005):
        for _ in range(12):
            device.iteration(number, clock)
            number += 1
    rows, blocking = device.measurer.rows()
    assert len(rows) == 6
    for row in rows:
        time, power = seconds(row.instruction, row.frequency_megahertz), watts(row.instruction, row.frequency_megahertz)
        assert row.time_seconds == pytest.approx(time, rel=1e-3)
        assert row.energy_joules == pytest.approx(time * power, rel=0.01)
        assert row.energy_stderr is not None
        assert row.samples >= 12
    assert [each.watts for each in blocking] == pytest.approx([BLOCKING_WATTS] * len(blocking), rel=0.01)


def test_a_clock_that_the_device_does_not_hold_has_no_rows_and_is_reported() -> None:
    device = Device(Measurer("m"), 0, cap=1200)
    for number in range(8):
        device.iteration(number, 1410)
    rows, _ = device.measurer.rows()
    assert rows == ()
    assert device.measurer.not_held[1410] > 0


def test_the_chunks_of_a_rank_are_told_apart() -> None:
    device = Device(Measurer("m"), 0, chunks=(0, 1, 1, 0, 0, 1))
    number = steady(device)
    for clock in (1410, 1200):
        for _ in range(60):
            device.iteration(number, clock)
            number += 1
    rows, blocking = device.measurer.rows()
    kinds = {(row.instruction, row.chunk, row.frequency_megahertz) for row in rows}
    assert kinds == {(each, chunk, clock) for each in (FORWARD, BACKWARD) for chunk in (0, 1) for clock in (1410, 1200)}
    for row in rows:
        known = row.instruction, row.frequency_megahertz, row.chunk
        assert row.time_seconds == pytest.approx(seconds(*known), rel=1e-3)
        assert row.energy_joules == pytest.approx(seconds(*known) * watts(*known), rel=0.01)
    assert [row.watts for row in blocking] == [pytest.approx(BLOCKING_WATTS, rel=0.01)] * 2


def test_nothing_counts_while_the_chip_warms_up() -> None:
    device = Device(Measurer("m"), 0)
    for number in range(12):
        device.celsius += 1.5
        device.iteration(number, 1410)
    assert device.measurer.rows() == ((), ())


def test_a_lost_message_costs_its_instruction_and_no_more() -> None:
    device = Device(Measurer("m"), 0)
    number = steady(device)
    measurer, take = device.measurer, device.measurer.boundary
    dice = random.Random(1)
    measurer.boundary = lambda boundary, work: None if dice.random() < 0.1 else take(boundary, work)  # type: ignore
    for _ in range(20):
        device.iteration(number, 1410)
        number += 1
    rows, _ = measurer.rows()
    for row in rows:
        assert row.time_seconds == pytest.approx(seconds(row.instruction, 1410), rel=1e-3)


def test_an_iteration_that_an_exception_left_moves_no_row() -> None:
    device = Device(Measurer("m"), 20 * MILLISECOND)
    number = steady(device)
    whole = device.measurer.longest_seconds
    for _ in range(20):
        device.iteration(number, 1410)
        device.measurer.boundary(Boundary(BoundaryKind.ITERATION_BEGIN, number + 1, device.now), (1410,) * len(ORDER))
        device.measurer.boundary(Boundary(BoundaryKind.INSTRUCTION_BEGIN, number + 1, device.now, ORDER[0]), ())
        device.burn(5 * MILLISECOND, 500.0)  # what it did when it failed, and what handles it, is not known
        device.measurer.boundary(Boundary(BoundaryKind.ITERATION_BROKEN, number + 1, device.now), ())
        device.burn(900 * MILLISECOND, 30.0)
        number += 2
    rows, blocking = device.measurer.rows()
    assert {row.instruction for row in rows} == set(ORDER)
    for row in rows:
        assert row.time_seconds == pytest.approx(seconds(row.instruction, 1410), rel=1e-3)
        assert row.energy_joules == pytest.approx(watts(row.instruction, 1410) * row.time_seconds, rel=0.01)
    assert [row.watts for row in blocking] == [pytest.approx(BLOCKING_WATTS, rel=0.01)]
    assert device.measurer.longest_seconds == pytest.approx(whole), "what is broken is no iteration of the sweep"


def test_what_a_script_does_between_two_iterations_of_a_sweep_moves_no_row() -> None:
    device = Device(Measurer("m"), 20 * MILLISECOND)
    number = steady(device)
    whole = device.measurer.longest_seconds
    for _ in range(20):
        for clock in (1200, 1200, 1200):
            device.iteration(number, clock)
            number += 1
        device.burn(1500 * MILLISECOND, 300.0)  # An evaluation, at first at the sweep's clock.
        device.measurer.intermission()
        device.request(None)
        device.burn(5 * SECOND, 400.0)
    rows, blocking = device.measurer.rows()
    assert {row.frequency_megahertz for row in rows} == {1410, 1200}
    for row in rows:
        known = row.instruction, row.frequency_megahertz
        assert row.time_seconds == pytest.approx(seconds(*known), rel=1e-3)
        assert row.energy_joules == pytest.approx(seconds(*known) * watts(*known), rel=0.01)
    assert [each.watts for each in blocking] == pytest.approx([BLOCKING_WATTS] * len(blocking), rel=0.01)
    assert device.measurer.longest_seconds < 1.3 * whole, "it made no iteration of the sweep longer"


def test_refreshes_are_found_with_few_reads_and_their_moments_are_right() -> None:
    finder, found, reads, now = RefreshFinder(), [], 0, 0
    period, phase = 100 * MILLISECOND, 37 * MILLISECOND
    while now < 20 * SECOND:
        now = max(now + 1, finder.next_read_nanoseconds)
        after = now + 20_000
        reads += 1
        refresh = finder.read(now, after, float((now - phase) // period))
        if refresh is not None:
            found.append((refresh.time_nanoseconds - phase) % period)
    errors = [min(each, period - each) for each in found]
    assert len(found) > 190
    assert max(errors[5:]) < MILLISECOND
    assert reads < 10 * len(found)


def test_a_reader_that_is_late_now_and_then_tells_no_wrong_moment() -> None:
    finder, now, period = RefreshFinder(), 0, 100 * MILLISECOND
    dice = random.Random(2)
    while now < 30 * SECOND:
        now = max(now + 1, finder.next_read_nanoseconds) + (
            dice.randrange(30 * MILLISECOND) if dice.random() < 0.1 else 0
        )
        refresh = finder.read(now, now + 20_000, float(now // period))
        if refresh is not None:
            offset = refresh.time_nanoseconds % period
            assert min(offset, period - offset) < 3 * MILLISECOND


def test_a_reader_that_was_not_scheduled_for_a_while_does_not_look_ever_earlier() -> None:
    finder, now, period = RefreshFinder(), 0, 100 * MILLISECOND
    for _ in range(80):  # Each read comes half a second late, and shows a refresh that nobody can date.
        now = max(now + 1, finder.next_read_nanoseconds) + 500 * MILLISECOND
        assert finder.read(now, now + 20_000, float(now // period)) is None
    end, found = now + 3 * SECOND, 0
    while now < end:
        now = max(now + 1, finder.next_read_nanoseconds)
        found += finder.read(now, now + 20_000, float(now // period)) is not None
    assert found > 20


def test_powers_are_told_apart_and_so_is_what_cannot_be() -> None:
    fit: PowerFit[str] = PowerFit()
    fit.add({"a": 0.1, "b": 0.1}, 35.0)
    fit.add({"a": 0.1, "b": 0.1}, 35.0)
    fit.add({"a": 0.1, "b": 0.1}, 35.0)
    assert fit.solve() == {}, "they never parted"
    fit.add({"a": 0.2}, 30.0)
    assert {state: power.watts for state, power in fit.solve().items()} == pytest.approx({"a": 150.0, "b": 200.0})


@given(st.lists(st.floats(0.9, 1.1), min_size=20, max_size=60), st.lists(st.floats(2, 50), max_size=3))
def test_a_few_late_instructions_do_not_move_the_mean(usual: list[float], late: list[float]) -> None:
    times = Times()
    for each in usual + late:
        times.add(each)
    mean, error = times.mean()
    assert 0.9 <= mean <= 1.1
    assert error < 0.1


def test_a_temperature_that_stands_still_is_steady_and_one_that_rises_is_not() -> None:
    steadiness = Steadiness(stretch_nanoseconds=10)
    for tick in range(40):
        steadiness.look(50.0 + min(tick, 20))
        steadiness.iteration("work", tick * 5)
        if tick < 18:
            assert not steadiness.is_steady
    assert steadiness.is_steady
    steadiness.iteration("other work", 1000)
    assert steadiness.is_steady, "work that changed tells nothing"


def test_a_row_that_was_told_late_does_not_move_the_powers() -> None:
    fit: PowerFit[str] = PowerFit()
    for index in range(30):
        first = 0.02 + 0.002 * (index % 7)
        fit.add({"a": first, "b": 0.1 - first}, 150 * first + 200 * (0.1 - first) + 0.01 * (index % 3))
    fit.add({"a": 0.1}, 4.0)
    assert {state: power.watts for state, power in fit.solve().items()} == pytest.approx({"a": 150, "b": 200}, rel=0.01)
