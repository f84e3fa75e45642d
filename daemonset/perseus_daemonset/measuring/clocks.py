"""Which clock was really held, and when: what the device reported, never what was asked of it. Pure.

NVML's SUCCESS means that a clock was requested. It counts as held between two looks at the device that both saw it,
with no request in between; what lies outside of such stretches has no clock that one could write into a profile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# Beyond this a clock that is not held is no delay of the change any more.
CHANGE_TIMEOUT_NANOSECONDS = 1_000_000_000
# A clock that is missed for less of its time can be measured in the rest.
NOT_HELD_SHARE = 0.1


@dataclass(slots=True)
class _Stretch:
    begin: int
    end: int
    megahertz: int


@dataclass(slots=True)
class _Clock:
    """How one clock was held while it was requested: looks that missed it long after the request, and nanoseconds."""

    looks_missed: int = 0
    missed: int = 0
    held: int = 0


class HeldClocks:
    """The stretches of time in which one clock was held.

    Attributes:
        looked_nanoseconds: begin of the last look.
    """

    def __init__(self) -> None:
        """Begin without a request."""
        self._clocks: dict[int, _Clock] = {}
        self._requested: int | None = None
        self._requested_at = 0
        self._open = False
        self._stretches: deque[_Stretch] = deque()
        self.looked_nanoseconds = 0

    @property
    def unconfirmed(self) -> bool:
        """Whether the device has not been seen at the clock that is requested."""
        return self._requested is not None and not self._open

    @property
    def not_held(self) -> dict[int, int]:
        """By clock, looks that saw another one long after the request; of clocks that the device does not hold alone.

        A second in which heat or power held the device down is none: what counts is the clock's share of its time.
        """
        return {
            megahertz: clock.looks_missed
            for megahertz, clock in self._clocks.items()
            if clock.missed > NOT_HELD_SHARE * (clock.missed + clock.held)
        }

    def request(self, begin_nanoseconds: int, megahertz: int | None) -> None:
        """A clock was requested (None: given back) by a call that began at a moment."""
        self._requested = megahertz
        self._requested_at = begin_nanoseconds
        self._open = False

    def look(
        self, begin_nanoseconds: int, end_nanoseconds: int, megahertz: int, undisturbed: bool, idle: bool = False
    ) -> None:
        """The device was asked between two moments.

        Args:
            begin_nanoseconds: of the question.
            end_nanoseconds: of the answer.
            megahertz: the clock that it reported.
            undisturbed: whether nothing else slows it.
            idle: whether it has nothing to do, and may rest at a clock of its own.
        """
        before, self.looked_nanoseconds = self.looked_nanoseconds, max(self.looked_nanoseconds, begin_nanoseconds)
        requested = self._requested
        if requested is None or begin_nanoseconds < self._requested_at:
            return
        clock = self._clocks.setdefault(requested, _Clock())
        if megahertz != requested or not undisturbed:
            self._open = False
            overdue = begin_nanoseconds - max(self._requested_at + CHANGE_TIMEOUT_NANOSECONDS, before)
            if overdue > 0 and not idle:
                clock.looks_missed += 1
                clock.missed += overdue
            return
        clock.held += begin_nanoseconds - max(self._requested_at, before)
        if self._open:
            self._stretches[-1].end = begin_nanoseconds
        else:
            self._stretches.append(_Stretch(end_nanoseconds, end_nanoseconds, requested))
            self._open = True

    def held(self, begin_nanoseconds: int, end_nanoseconds: int) -> int | None:
        """Return the clock that was held all through a stretch of time up to the last look; None if none is known."""
        for stretch in reversed(self._stretches):
            if stretch.begin <= begin_nanoseconds:
                return stretch.megahertz if end_nanoseconds <= stretch.end else None
        return None

    def forget(self, before_nanoseconds: int) -> None:
        """Forget stretches that ended before a moment."""
        while len(self._stretches) > 1 and self._stretches[0].end < before_nanoseconds:
            self._stretches.popleft()
