"""Whether the operator does its work: health that fails when nothing would happen any more, and says why.

An API server or a Prometheus that is away is no reason: a restart would not bring it back, and visits are tried again.
"""

from __future__ import annotations

from perseus_operator.backstop import Backstop
from perseus_operator.scope import Scope
from perseus_operator.visits import VisitQueue

OVERDUE_SECONDS = 180.0
LONGEST_VISIT_SECONDS = 240.0


class Health:
    """Asks the parts that run."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._queue: VisitQueue | None = None
        self._backstop: Backstop | None = None
        self._scope = Scope()

    def begins(self, queue: VisitQueue, backstop: Backstop, scope: Scope) -> None:
        """The parts run from now on."""
        self._queue, self._backstop, self._scope = queue, backstop, scope

    @property
    def ready(self) -> bool:
        """Whether jobs are visited."""
        return self._queue is not None

    def troubles(self) -> list[str]:
        """Return what keeps the operator from its work, one sentence each; empty: it is well."""
        found = []
        if self._queue is not None:
            overdue, longest = self._queue.overdue_seconds(), self._queue.longest_visit_seconds()
            if overdue > OVERDUE_SECONDS and not self._queue.is_away:
                found.append(f"a visit has been due for {overdue:.0f} s: the visits stand still")
            if longest > LONGEST_VISIT_SECONDS:
                found.append(f"a visit has been running for {longest:.0f} s: it hangs")
        if self._backstop is not None and self._backstop.missed:
            found.append(f"the watch tells nothing of {len(self._backstop.missed)} jobs: it stands still")
        if self._scope.returned:
            found.append(
                f"may be read again, which a restart makes use of: namespace {', '.join(self._scope.returned)}"
            )
        return found
