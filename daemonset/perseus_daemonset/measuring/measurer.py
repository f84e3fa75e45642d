"""One rank's measurement: what it did, which clock was held, and what the counter showed, brought together. Pure.

Boundaries come from the trainer, looks at the clock and refreshes of the counter from the thread that reads the GPU;
each is late in its own way. So everything waits in order of time until all three are known up to there. What ran while
the clock changed, or was not the one requested, or while the chip still warmed up, is known and does not count.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

from perseus_api.measurements import BlockingRow, InstructionRow
from perseus_api.messages import Boundary, BoundaryKind

from perseus_daemonset.measuring.clocks import HeldClocks
from perseus_daemonset.measuring.counter import Refresh
from perseus_daemonset.measuring.regression import Power, PowerFit
from perseus_daemonset.measuring.steadiness import Steadiness
from perseus_daemonset.measuring.timeline import Doing, Idle, Running, Stretch, Timeline
from perseus_daemonset.measuring.times import Times

_NANOSECONDS = 1_000_000_000
MAXIMUM_STRETCHES = 16_384
MAXIMUM_REFRESHES = 1_024
MAXIMUM_KINDS_OF_WORK = 512
MAXIMUM_WATTS = 10_000.0
WORST_RELATIVE_ERROR = 0.2
# Below this a power's standard error is that of the counter's moments, not of the rows.
_LEAST_RELATIVE_ERROR = 1e-4

State = tuple[Doing, int]  # what, at which clock in MHz
Work = tuple[int, ...]  # the clocks of an iteration; empty while it is unlocked


@dataclass(frozen=True, slots=True)
class _Done:
    """A stretch with what it counts as: None as state is what does not count."""

    begin: int
    end: int
    state: State | None
    work: Work


class Measurer:
    """Measures one rank for one sweep.

    Attributes:
        measurement: the sweep's name.
        wanted: whether the sweep goes on: the GPU is read only then.
        iterations: that ran in windows of the sweep.
        seconds: their duration.
        longest_seconds: duration of the longest.
    """

    def __init__(self, measurement: str) -> None:
        """Begin without rows."""
        self.measurement = measurement
        self.wanted = True
        self.iterations = 0
        self.seconds = 0.0
        self.longest_seconds = 0.0
        self._mutex = threading.Lock()
        self._timeline = Timeline()
        self._held = HeldClocks()
        self._steadiness = Steadiness()
        self._work: Work = ()
        self._iteration_begin: int | None = None
        self._stretches: deque[tuple[Stretch, Work, bool]] = deque()
        self._refreshes: deque[Refresh] = deque()
        self._done: deque[_Done] = deque()
        self._known = 0
        self._last_refresh: Refresh | None = None
        self._times: dict[State, Times] = {}
        self._fits: dict[Work, PowerFit[State]] = {}

    @property
    def unconfirmed(self) -> bool:
        """Whether the clock that was requested has not been seen."""
        return self._held.unconfirmed

    @property
    def is_steady(self) -> bool:
        """Whether the GPU's temperature stands still."""
        return self._steadiness.is_steady

    def boundary(self, boundary: Boundary, work: Work) -> None:
        """Take a boundary, and the clocks of the iteration that it stands in."""
        with self._mutex:
            if boundary.kind is BoundaryKind.ITERATION_BROKEN:
                # What ran when the exception came, and what handles it, is not known.
                self._timeline.interrupt()
                self._iteration_begin = None
                return
            stretch = self._timeline.take(boundary)
            if stretch is not None and len(self._stretches) < MAXIMUM_STRETCHES:
                self._stretches.append((stretch, self._work, self._steadiness.is_steady))
            if boundary.kind is BoundaryKind.ITERATION_BEGIN:
                self._begin_iteration(boundary.time_nanoseconds, work)
            self._advance()

    def request(self, begin_nanoseconds: int, megahertz: int | None) -> None:
        """A clock was requested, None: given back."""
        with self._mutex:
            self._held.request(begin_nanoseconds, megahertz)

    def intermission(self) -> None:
        """Something else runs after an iteration, whose duration is not known by the begin of the next one."""
        with self._mutex:
            self._iteration_begin = None

    def look(self, begin: int, end: int, megahertz: int, celsius: float, undisturbed: bool, idle: bool = False) -> None:
        """The device was asked between two moments (nanoseconds); see `HeldClocks.look`."""
        with self._mutex:
            self._held.look(begin, end, megahertz, undisturbed, idle)
            self._steadiness.look(celsius)
            self._advance()

    def refresh(self, refresh: Refresh) -> None:
        """The counter was refreshed."""
        with self._mutex:
            if len(self._refreshes) < MAXIMUM_REFRESHES:
                self._refreshes.append(refresh)

    def interrupted(self) -> None:
        """The trainer was lost; rows stay."""
        with self._mutex:
            self._timeline.interrupt()
            self._iteration_begin = None
            self._stretches.clear()
            self._refreshes.clear()
            self._done.clear()
            self._last_refresh = None

    def rows(self) -> tuple[tuple[InstructionRow, ...], tuple[BlockingRow, ...]]:
        """Return what was measured: rows of instructions, and the power of waiting by clock."""
        with self._mutex:
            powers = self._powers()
            instructions = []
            for (doing, clock), times in sorted(self._times.items()):
                if not isinstance(doing, Running):
                    continue
                seconds, seconds_error = times.mean()
                joules = joules_error = None
                power = powers.get((doing, clock))
                if power is not None and _is_known(power):
                    joules = power.watts * seconds
                    joules_error = math.hypot(power.watts * seconds_error, power.stderr * seconds)
                instructions.append(
                    InstructionRow(
                        instruction=doing.instruction, chunk=doing.chunk, frequency_megahertz=clock,
                        samples=times.count, time_seconds=seconds, time_stderr=seconds_error, energy_joules=joules,
                        energy_stderr=joules_error,
                    )
                )  # fmt: skip
            waits = {clock: power for (doing, clock), power in powers.items() if doing is Idle.WAITING}
            blocking = [
                BlockingRow(
                    frequency_megahertz=clock, seconds=power.seconds, watts=power.watts,
                    watts_stderr=power.stderr,
                )
                for clock, power in sorted(waits.items())
                if _is_known(power)
            ]  # fmt: skip
            return tuple(instructions), tuple(blocking)

    @property
    def not_held(self) -> dict[int, int]:
        """By clock, looks at the device that saw another one; of clocks that it does not hold alone."""
        with self._mutex:
            return self._held.not_held

    def _begin_iteration(self, now: int, work: Work) -> None:
        if self._iteration_begin is not None and self._work:
            seconds = (now - self._iteration_begin) / _NANOSECONDS
            self.iterations += 1
            self.seconds += seconds
            self.longest_seconds = max(self.longest_seconds, seconds)
        self._iteration_begin = now
        self._work = work
        self._steadiness.iteration(work, now)

    def _advance(self) -> None:
        """Bring together what is known from all sides."""
        looked = self._held.looked_nanoseconds
        while self._stretches and self._stretches[0][0].end_nanoseconds <= looked:
            stretch, work, steady = self._stretches.popleft()
            self._settle(stretch, work, steady)
        while self._refreshes and self._refreshes[0].time_nanoseconds <= self._known:
            self._count(self._refreshes.popleft())
        self._held.forget(self._known)
        if len(self._done) > MAXIMUM_STRETCHES:  # The counter stands still: nothing comes of these.
            self._done.clear()
            self._last_refresh = None

    def _settle(self, stretch: Stretch, work: Work, steady: bool) -> None:
        begin, end = stretch.begin_nanoseconds, stretch.end_nanoseconds
        state: State | None = None
        if stretch.doing is not None and work and steady:
            clock = self._held.held(begin, end)
            if clock is not None:
                state = (stretch.doing, clock)
                if isinstance(stretch.doing, Running):
                    self._times.setdefault(state, Times()).add((end - begin) / _NANOSECONDS)
        self._done.append(_Done(begin, end, state, work))
        self._known = end

    def _count(self, refresh: Refresh) -> None:
        """Make a row of the time between two refreshes, if all of it counts and is of one kind of work."""
        before, self._last_refresh = self._last_refresh, refresh
        end = refresh.time_nanoseconds
        seconds: dict[State, float] = {}
        work: Work | None = None
        counts = before is not None
        covered = 0
        while self._done and self._done[0].begin < end:
            done = self._done[0]
            begin = max(done.begin, before.time_nanoseconds if before else 0)
            span = min(done.end, end) - begin
            if span > 0 and counts:
                covered += span
                if done.state is None or (work is not None and done.work != work):
                    counts = False
                else:
                    work = done.work
                    seconds[done.state] = seconds.get(done.state, 0.0) + span / _NANOSECONDS
            if done.end > end:
                break
            self._done.popleft()
        if before is None or not counts or work is None or covered < end - before.time_nanoseconds:
            return
        if work not in self._fits and len(self._fits) >= MAXIMUM_KINDS_OF_WORK:
            return
        self._fits.setdefault(work, PowerFit()).add(seconds, refresh.joules - before.joules)

    def _powers(self) -> dict[State, Power]:
        """Return the power of each state over all kinds of work, weighted by how well each knows it."""
        found: dict[State, list[Power]] = {}
        for fit in self._fits.values():
            for state, power in fit.solve().items():
                found.setdefault(state, []).append(power)
        return {state: _together(powers) for state, powers in found.items()}


def _is_known(power: Power) -> bool:
    """Whether a power can be told at all: few rows, or such in which states never part, determine nothing."""
    return 0 < power.watts < MAXIMUM_WATTS and power.stderr < WORST_RELATIVE_ERROR * power.watts


def _together(powers: list[Power]) -> Power:
    weights = [1 / max(each.stderr, _LEAST_RELATIVE_ERROR * max(each.watts, 1.0)) ** 2 for each in powers]
    watts = sum(weight * each.watts for weight, each in zip(weights, powers, strict=True)) / sum(weights)
    return Power(watts, math.sqrt(1 / sum(weights)), sum(each.seconds for each in powers))
