"""Whether a GPU's temperature stands still: a chip that warms up draws more for the same work. Pure.

Two stretches of the same work are compared by the mean of their hottest quarters: while the GPU waits it may be
cooler, and how long it waits wavers. Work that changed tells nothing: what was known before holds until two stretches
of the new work are over.
"""

from __future__ import annotations

STRETCH_NANOSECONDS = 2_000_000_000
MAXIMUM_READINGS = 4_096
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
        self._readings: list[float] = []
        self._before: float | None = None

    def look(self, celsius: float) -> None:
        """Take a reading."""
        if len(self._readings) < MAXIMUM_READINGS:
            self._readings.append(celsius)

    def iteration(self, work: object, now_nanoseconds: int) -> None:
        """An iteration of some work begins; the one before is over."""
        if self._begin is None or work != self._work:
            self._work, self._begin, self._before = work, now_nanoseconds, None
            self._readings.clear()
            return
        if now_nanoseconds - self._begin < self._length or not self._readings:
            return
        hottest = sorted(self._readings)[-max(1, len(self._readings) // 4) :]
        mean = sum(hottest) / len(hottest)
        if self._before is not None:
            self.is_steady = abs(mean - self._before) <= MAXIMUM_CHANGE_CELSIUS
        self._before, self._begin = mean, now_nanoseconds
        self._readings.clear()
