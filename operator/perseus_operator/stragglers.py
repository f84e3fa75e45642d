"""Who is slow? Decided from the pipelines' measured times, with hysteresis; and from when a plan may hold. Pure.

Measured time is that of stage 0 from first forward to last backward, free of the wait at the gradient
synchronisation. A measurement counts only if it belongs to an iteration that ran under the pipeline's present clocks.
Absence of measurements never slows anybody: the last decision holds for a while, then everybody is taken to be well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from perseus_api.job import StragglerPolicy
from perseus_api.plan import Plan

from perseus_operator.planning import Stragglers, planned_seconds, stragglers_of

HOLD_WITHOUT_DATA_SECONDS = 120.0
# A straggler's time may move this much before the others follow it: a plan for each wobble helps nobody.
DEADLINE_TOLERANCE = 0.02
# What measuring and messages may add to a planned time; more is not overhead.
MAXIMUM_OVERHEAD = 1.02
NOTICE_SECONDS = 0.7
STALE_ITERATIONS = 10.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Measurement:
    """What Prometheus says of one pipeline.

    Attributes:
        seconds: pipeline time of the last finished iteration; None before the first.
        iteration: index of the iteration that runs now.
        begin_seconds: wall-clock time at which it began.
    """

    seconds: float | None
    iteration: int
    begin_seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether the numbers can be true at all."""
        well = math.isfinite(self.begin_seconds) and self.iteration >= 0
        return well and (self.seconds is None or (math.isfinite(self.seconds) and 0 < self.seconds < 1e6))


@dataclass
class JobWatch:
    """What is remembered of a job between rounds.

    Attributes:
        valid_from: by pipeline, the iteration from which its measurements belong to its present clocks.
        stragglers: the situation acted on.
        seen_seconds: monotonic time of the last usable measurements.
        highest_iteration: by pipeline, the highest iteration seen under the present plan.
    """

    valid_from: dict[int, int] = field(default_factory=dict)
    stragglers: Stragglers = field(default_factory=Stragglers)
    seen_seconds: float = 0.0
    highest_iteration: dict[int, int] = field(default_factory=dict)

    @classmethod
    def resume(cls, plan: Plan, now_seconds: float) -> JobWatch:
        """Begin from the plan in force, as an operator that starts anew does."""
        first = dict.fromkeys(range(len(plan.pipelines)), plan.first_iteration)
        return cls(valid_from=first, stragglers=stragglers_of(plan), seen_seconds=now_seconds)

    def changed(self, before: Plan | None, plan: Plan, stragglers: Stragglers) -> None:
        """Take note of a new plan."""
        self.stragglers = stragglers
        for index in range(len(plan.pipelines)):
            if before is None or before.clocks_of(index, 0) != plan.clocks_of(index, 0) or _restarted(before, plan):
                self.valid_from[index] = plan.first_iteration
        if before is None or _restarted(before, plan):
            self.highest_iteration.clear()


def assess(
    watch: JobWatch, plan: Plan, measured: dict[int, Measurement], policy: StragglerPolicy, now: float, wall: float
) -> Stragglers:
    """Return who straggles now.

    Args:
        watch: what is remembered; `seen_seconds` is brought up to date.
        plan: in force.
        measured: by pipeline.
        policy: thresholds of the job.
        now: monotonic seconds.
        wall: wall-clock seconds.
    """
    if not policy.enabled or len(plan.pipelines) < 2:
        return Stragglers()
    ratios = {
        index: each.seconds / planned_seconds(plan, index)
        for index, each in measured.items()
        if each.seconds is not None and _counts(watch, plan, index, each, wall)
    }
    if not ratios:
        return watch.stragglers if now - watch.seen_seconds < HOLD_WITHOUT_DATA_SECONDS else Stragglers()
    watch.seen_seconds = now
    slow = []
    for index in range(len(plan.pipelines)):
        was_slow = index in watch.stragglers.pipelines
        limit = 1 + (policy.leave_percent if was_slow else policy.enter_percent) / 100
        # A pipeline that says nothing keeps what was known of it.
        if ratios[index] > limit if index in ratios else was_slow:
            slow.append(index)
    if not slow or len(slow) == len(plan.pipelines):
        return Stragglers()
    times = [measured[index].seconds or 0.0 for index in slow if index in ratios]
    if not times:
        return watch.stragglers
    healthy = [ratio for index, ratio in ratios.items() if index not in slow]
    overhead = min(max(min(healthy, default=1.0), 1.0), MAXIMUM_OVERHEAD)
    deadline = max(times) / overhead
    before = watch.stragglers
    if before.pipelines == tuple(slow) and abs(deadline / before.deadline_seconds - 1) <= DEADLINE_TOLERANCE:
        return before
    return Stragglers(tuple(slow), deadline)


def training_restarted(watch: JobWatch, plan: Plan, measured: dict[int, Measurement]) -> bool:
    """Whether training began anew (iterations count from 0 again) after the plan's first iteration had been reached."""
    for index, each in measured.items():
        highest = watch.highest_iteration.get(index, -1)
        if each.iteration < highest and highest >= plan.first_iteration and each.iteration < plan.first_iteration:
            return True
        watch.highest_iteration[index] = max(highest, each.iteration)
    return False


def first_iteration(plan: Plan, measured: dict[int, Measurement], wall: float) -> int:
    """Return the iteration from which a new plan can hold on all agents: the first that begins late enough from now.

    Prometheus's knowledge is up to a scrape old, so the iterations since are reckoned from the measured duration.
    """
    found = 0
    period = max(
        [planned_seconds(plan, index) for index in range(len(plan.pipelines))]
        + [each.seconds for each in measured.values() if each.seconds is not None]
    )
    for each in measured.values():
        elapsed = max(0.0, wall + NOTICE_SECONDS - each.begin_seconds)
        found = max(found, each.iteration + math.floor(elapsed / period) + 1)
    return max(found, 1)


def _counts(watch: JobWatch, plan: Plan, index: int, each: Measurement, wall: float) -> bool:
    if not each.is_sound or index >= len(plan.pipelines):
        return False
    age = wall - each.begin_seconds
    fresh = age < max(STALE_SECONDS, STALE_ITERATIONS * planned_seconds(plan, index))
    return fresh and each.iteration > watch.valid_from.get(index, plan.first_iteration)


def _restarted(before: Plan, plan: Plan) -> bool:
    return plan.first_iteration < before.first_iteration
