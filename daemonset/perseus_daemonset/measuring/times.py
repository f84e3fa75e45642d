"""The time of an instruction from many: a trimmed mean, because some are longer than they were. Pure.

A process that the kernel did not schedule at once tells the end of its instruction too late, now and then by more than
all instructions differ. The longest and the shortest fifth do not count (trimmed mean; its standard error from the
winsorised deviation, Yuen 1974).
"""

from __future__ import annotations

import math
from array import array

MAXIMUM_SAMPLES = 1024
_TRIMMED = 0.2


class Times:
    """Samples of one time in seconds; of more than `MAXIMUM_SAMPLES` the newest count."""

    def __init__(self) -> None:
        """Begin without samples."""
        self.count = 0
        self._samples = array("d")

    def add(self, seconds: float) -> None:
        """Take a sample."""
        if len(self._samples) < MAXIMUM_SAMPLES:
            self._samples.append(seconds)
        else:
            self._samples[self.count % MAXIMUM_SAMPLES] = seconds
        self.count += 1

    def mean(self) -> tuple[float, float]:
        """Return the trimmed mean and its standard error; of one sample the error is the sample itself.

        Raises:
            ValueError: there is no sample.
        """
        if not self._samples:
            raise ValueError("no sample, no mean")
        ordered = sorted(self._samples)
        size = len(ordered)
        if size == 1:
            return ordered[0], ordered[0]
        cut = int(size * _TRIMMED)
        kept = ordered[cut : size - cut]
        mean = sum(kept) / len(kept)
        winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
        centre = sum(winsorised) / size
        deviation = math.sqrt(sum((each - centre) ** 2 for each in winsorised) / (size - 1))
        return mean, deviation / ((1 - 2 * cut / size) * math.sqrt(size))
