"""Is a pipeline slow? Judged from its measured times as early as their noise allows. Pure.

A median over a window is robust but late; a single measurement is early but, in noise, wrong. So the medians of the
newest one, two, three ... measurements are all looked at, up to the window, and a shorter one must stand out of the
noise by more: where iterations repeat to a thousandth one measurement is enough, where they scatter by two percent
a small slowdown takes the whole window. The noise is what the job's own measurements show: the usual difference from
one to the next, which neither a straggler nor a drift changes much.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

from perseus_operator.measurements import Measurement

# Of ratios, before the job has shown its own, and the least that is believed.
PRIOR_NOISE, LEAST_NOISE = 0.02, 0.001
ENOUGH_DIFFERENCES = 8
REMEMBERED_DIFFERENCES = 256
# Standard errors by which a slow pipeline must stand out, and by which a recovered, or a less slow one: waiting costs
# energy in the first case, time in the others.
ENTER_ERRORS, LEAVE_ERRORS, FALL_ERRORS = 4.0, 2.0, 3.0
_MEDIAN_EFFICIENCY = 1.2533  # Standard error of a median over that of a mean, for normal noise.
_MAD_TO_DEVIATION = 1.4826


@dataclass
class Noise:
    """Of a job's pipelines together, as a standard deviation of measured over planned time."""

    differences: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_DIFFERENCES))
    _deviation: float | None = None

    def take(self, before: float, after: float) -> None:
        """Take two measurements of one pipeline, one after the other."""
        self.differences.append(abs(after - before))
        self._deviation = None

    @property
    def deviation(self) -> float:
        """The standard deviation, robust against single outliers."""
        if len(self.differences) < ENOUGH_DIFFERENCES:
            return PRIOR_NOISE
        if self._deviation is None:
            found = _MAD_TO_DEVIATION * statistics.median(self.differences) / math.sqrt(2)
            # Few differences may agree by chance.
            self._deviation = max(LEAST_NOISE, found * (1 + 1 / math.sqrt(len(self.differences))))
        return self._deviation

    def error(self, count: int) -> float:
        """Return the standard error of a median of some measurements."""
        return self.deviation * (_MEDIAN_EFFICIENCY if count > 2 else 1.0) / math.sqrt(count)


@dataclass
class Evidence:
    """Of one pipeline, under its present clocks.

    Attributes:
        ratios: measured over planned time, oldest first, since the last verdict or change of clocks.
        slow: the verdict.
        level: the last estimate of measured over planned time; 1 until there is one.
        seen_seconds: monotonic time of the last measurement.
    """

    ratios: deque[float] = field(default_factory=deque)
    slow: bool = False
    level: float = 1.0
    seen_seconds: float = 0.0
    _last: tuple[int, float] | None = None

    def forget(self) -> None:
        """The clocks change: the measurements belong to earlier ones. The verdict stays, and so does the level."""
        self.ratios.clear()

    def expire(self) -> None:
        """Nothing was heard for too long: the pipeline is taken to be well."""
        self.ratios.clear()
        self.slow, self.level = False, 1.0

    def take(self, each: Measurement, planned_seconds: float, window: int, noise: Noise, now: float) -> bool:
        """Take a measurement if it is a new one; return whether it was.

        Args:
            each: the measurement.
            planned_seconds: what it is held against.
            window: how many to keep.
            noise: learns from it.
            now: monotonic seconds.
        """
        self.seen_seconds = now
        if each.seconds is None or self._is_known(each.iteration, each.seconds):
            return False
        ratio = each.seconds / planned_seconds
        if self.ratios:
            noise.take(self.ratios[-1], ratio)
        self.ratios.append(ratio)
        while len(self.ratios) > window:
            self.ratios.popleft()
        self._last = (each.iteration, each.seconds)
        self.level = statistics.median(self.ratios)
        return True

    def skip(self, each: Measurement) -> None:
        """Remember a measurement that does not count, so that its repetition does not count either."""
        if each.seconds is not None:
            self._last = (each.iteration, each.seconds)

    def judge(self, common: float, enter: float, leave: float, noise: Noise, least: int) -> bool:
        """Bring the verdict up to date; return whether it changed.

        Args:
            common: what all pipelines are slow by, which makes nobody a straggler.
            enter: ratio from which a pipeline is slow.
            leave: ratio to which a slow one must return.
            noise: of the job.
            least: measurements that a slow verdict needs at least.
        """
        newest = list(self.ratios)
        for count in range(1, len(newest) + 1):
            # Of an even number the harder one: half of them are no proof.
            middle = statistics.median_high if self.slow else statistics.median_low
            median = middle(newest[-count:]) / common
            error = noise.error(count)
            if self.slow:
                changed = median <= leave and median + LEAVE_ERRORS * error < enter
            else:
                changed = count >= least and median > enter and median - ENTER_ERRORS * error > leave
            if changed:
                self.slow = not self.slow
                # What came before the change would only blur the new level.
                self._keep(count)
                return True
        return False

    def fell_below(self, ratio: float, noise: Noise) -> bool:
        """Whether the newest measurements are surely below a ratio; those before them are forgotten then."""
        newest = list(self.ratios)
        for count in range(1, len(newest) + 1):
            if statistics.median_high(newest[-count:]) + FALL_ERRORS * noise.error(count) < ratio:
                self._keep(count)
                return True
        return False

    def rose_above(self, ratio: float, noise: Noise) -> bool:
        """Whether the newest measurements are surely above a ratio; those before them are forgotten then."""
        newest = list(self.ratios)
        for count in range(1, len(newest) + 1):
            if statistics.median_low(newest[-count:]) - ENTER_ERRORS * noise.error(count) > ratio:
                self._keep(count)
                return True
        return False

    def _keep(self, count: int) -> None:
        while len(self.ratios) > count:
            self.ratios.popleft()
        self.level = statistics.median(self.ratios)

    def _is_known(self, iteration: int, seconds: float) -> bool:
        """Between the last backward and the next iteration's begin, one time shows under two iterations."""
        if self._last is None:
            return False
        last_iteration, last_seconds = self._last
        return seconds == last_seconds and iteration <= last_iteration + 1
