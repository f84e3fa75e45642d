"""Whether a GPU's temperature stands still: a chip that warms up draws more for the same work. Pure.

Two stretches of the same work are compared by their highest temperatures. Work that changed tells nothing: what was
known before holds until two stretches of the new work are over.
"""

from __future__ import annotations

STRETCH_NANOSECONDS = 2_000_000_000
# NVML tells whole degrees; a chip that warms by one in a stretch is within a few of where it ends.
MAXIMUM_CHANGE_CELSIUS = 1.0


class Steadiness:
    """Follows one GPU's temperature from stretch to stretch.

    Attributes:
        is_steady: whether the last two comparable stretches agreed.
    """

    def __init__(self, stretch_nanoseconds: int = STRETCH_NANOSECONDS) -> None:
        """Begin unsteady.

        Args:
            stretch_nanoseconds: least length of a stretch; it ends with an iteration.
        """
        self.is_steady = False
        self._length = stretch_nanoseconds
        self._work: object = None
        self._begin: int | None = None
        self._highest: float | None = None
        self._before: float | None = None

    def look(self, celsius: float) -> None:
        """Take a reading."""
        self._highest = celsius if self._highest is None else max(self._highest, celsius)

    def iteration(self, work: object, now_nanoseconds: int) -> None:
        """An iteration of some work begins; the one before is over."""
        if self._begin is None or work != self._work:
            self._work, self._begin, self._highest, self._before = work, now_nanoseconds, None, None
            return
        if now_nanoseconds - self._begin < self._length or self._highest is None:
            return
        if self._before is not None:
            self.is_steady = abs(self._highest - self._before) <= MAXIMUM_CHANGE_CELSIUS
        self._before, self._highest, self._begin = self._highest, None, now_nanoseconds
