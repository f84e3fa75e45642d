"""Finding the moments at which a GPU's energy counter refreshes, with few reads. Pure.

Only at a refresh does the counter tell the energy up to a known moment. The refreshes are periodic: once the period is
known, the counter is read just before the next is due, and every half millisecond until it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

_MILLISECOND = 1_000_000
SEARCH_NANOSECONDS = 2 * _MILLISECOND
CLOSE_NANOSECONDS = _MILLISECOND // 2
LEAD_NANOSECONDS = 2 * _MILLISECOND
# A refresh between two reads that lie further apart (the process was not scheduled) is not worth its uncertainty.
MAXIMUM_BRACKET = 0.05
MAXIMUM_PERIOD_NANOSECONDS = 2_000 * _MILLISECOND


@dataclass(frozen=True, slots=True)
class Refresh:
    """The counter at one of its refreshes."""

    time_nanoseconds: int
    joules: float


class RefreshFinder:
    """Says when to read the counter next, and which reads show a refresh."""

    def __init__(self) -> None:
        """Begin without a period: search."""
        self._value: float | None = None
        self._read_nanoseconds = 0
        self._refresh: int | None = None
        self._period: float | None = None
        self._lead = LEAD_NANOSECONDS
        self._searched = 0
        self.next_read_nanoseconds = 0

    @property
    def period_nanoseconds(self) -> float | None:
        """Time from one refresh to the next, None until two were seen."""
        return self._period

    def read(self, before_nanoseconds: int, after_nanoseconds: int, joules: float) -> Refresh | None:
        """Take a read that was made between two moments; return the refresh that it shows, if its moment is known."""
        value, earlier = self._value, self._read_nanoseconds
        self._value, self._read_nanoseconds = joules, before_nanoseconds
        if value is None or joules == value:
            self._wait(after_nanoseconds)
            return None
        moment = (earlier + after_nanoseconds) // 2
        bracket = after_nanoseconds - earlier
        period = self._period
        if bracket > MAXIMUM_BRACKET * (period or 100 * _MILLISECOND):
            self._missed(after_nanoseconds)
            return None
        if self._refresh is not None:
            self._learn(moment - self._refresh)
        self._refresh = moment
        self._searched = 0
        self._schedule(after_nanoseconds)
        return Refresh(moment, joules)

    def _learn(self, span: int) -> None:
        if self._period is None:
            self._period = float(span)
            return
        whole = round(span / self._period)
        if whole and abs(span / whole / self._period - 1) < 0.1:
            # Over several periods the moments' uncertainty weighs less.
            weight = min(0.5, 0.1 * whole)
            self._period += weight * (span / whole - self._period)
            self._lead = max(LEAD_NANOSECONDS, self._lead * 9 // 10)
        else:
            self._period = None  # It is not what it seemed: search again.

    def _missed(self, now: int) -> None:
        """The refresh came before we looked: look earlier next time, or search if there is no pattern."""
        # While there is no period there is nothing to be early for.
        self._lead = LEAD_NANOSECONDS if self._period is None else 2 * self._lead
        if self._period is not None and self._lead > self._period / 2:
            self._period, self._lead = None, LEAD_NANOSECONDS
        self._refresh = self._refresh if self._period is not None else None
        self._schedule(now)

    def _schedule(self, now: int) -> None:
        if self._period is None or self._refresh is None:
            self.next_read_nanoseconds = now + SEARCH_NANOSECONDS
            return
        early = self._refresh + self._period - self._lead
        if early <= now:
            early += ((now - early) // self._period + 1) * self._period
        self.next_read_nanoseconds = int(early)

    def _wait(self, now: int) -> None:
        step = SEARCH_NANOSECONDS if self._period is None else CLOSE_NANOSECONDS
        self._searched += step
        if self._searched > MAXIMUM_PERIOD_NANOSECONDS:
            step = 50 * _MILLISECOND  # A counter that stands still is not worth a thousand reads a second.
        self.next_read_nanoseconds = now + step
