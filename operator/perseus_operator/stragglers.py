"""Who straggles, and what time the others may take for it: decided from evidence and announcements. Pure.

Measured time is that of stage 0 from first forward to last backward, free of the wait at the gradient
synchronisation. A measurement counts only if it belongs to an iteration that ran under the pipeline's present clocks.

Two directions, two rules. Whatever makes somebody faster (a recovery, a straggler that is less slow) is done at once:
training must not wait for us. Whatever makes somebody slower costs only energy when it is late: it is bounded to once
in a dwell time, which doubles while a straggler keeps coming back, so that one that flaps gets few plans. Absence of
measurements never slows anybody: the last decision holds for a while, then everybody is taken to be well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perseus_api.job import StragglerPolicy
from perseus_api.plan import Plan

from perseus_operator.evidence import Evidence, Noise
from perseus_operator.measurements import Measurement, PipelineVoice
from perseus_operator.planning import Stragglers, planned_seconds, stragglers_of

# A straggler's time must move this much before the others follow it: a plan for each wobble helps nobody.
RISE_TOLERANCE, FALL_TOLERANCE = 0.01, 0.01
# A straggler that is gone within this many dwell times was hardly worth a plan.
SHORT_EPISODE_DWELLS = 3
# Caution sinks by one for each of these many (doubled) dwell times without a straggler.
CALM_DWELLS = 10
MOST_CAUTION = 4


@dataclass
class JobWatch:
    """What is remembered of a job between rounds.

    Attributes:
        valid_from: by pipeline, the iteration from which its measurements belong to its present clocks.
        stragglers: the situation acted on.
        evidence: by pipeline.
        voices: by pipeline, which pod speaks for it.
        noise: of the job's measurements.
        highest_iteration: by pipeline, the highest iteration seen under the present plan.
        caution: how often, lately, a straggler was gone again before it was worth a plan.
        stretch_after_seconds: monotonic time before which nobody is made slower.
        entered_seconds: since when somebody straggles.
        left_seconds: since when nobody does.
    """

    valid_from: dict[int, int] = field(default_factory=dict)
    stragglers: Stragglers = field(default_factory=Stragglers)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    voices: dict[int, PipelineVoice] = field(default_factory=dict)
    noise: Noise = field(default_factory=Noise)
    highest_iteration: dict[int, int] = field(default_factory=dict)
    caution: int = 0
    stretch_after_seconds: float = 0.0
    entered_seconds: float = 0.0
    left_seconds: float = 0.0

    @classmethod
    def resume(cls, plan: Plan, policy: StragglerPolicy, now: float, age_seconds: float = 0.0) -> JobWatch:
        """Begin from the plan in force, as an operator that starts anew does: nothing jumps.

        Args:
            plan: in force.
            policy: of the job.
            now: monotonic seconds.
            age_seconds: of the plan, at least: nobody was made slower since.
        """
        first = dict.fromkeys(range(len(plan.pipelines)), plan.first_iteration)
        watch = cls(valid_from=first, stragglers=stragglers_of(plan))
        watch.entered_seconds = watch.left_seconds = now
        watch.stretch_after_seconds = now + max(0.0, policy.dwell_seconds - age_seconds)
        for index in watch.stragglers.pipelines:
            level = watch.stragglers.deadline_seconds / planned_seconds(plan, index)
            watch.evidence[index] = Evidence(slow=True, level=level, seen_seconds=now)
        return watch

    def changed(
        self, before: Plan | None, plan: Plan, stragglers: Stragglers, policy: StragglerPolicy, now: float
    ) -> None:
        """Take note of a new plan."""
        restarted = before is None or _restarted(before, plan)
        for index in range(len(plan.pipelines)):
            if before is None or restarted or _clocks_of(before, index) != _clocks_of(plan, index):
                self.valid_from[index] = plan.first_iteration
                if index in self.evidence:
                    self.evidence[index].forget()
        if restarted:
            self.highest_iteration.clear()
        self.settle(stragglers, policy, now)

    def settle(self, stragglers: Stragglers, policy: StragglerPolicy, now: float) -> None:
        """Take note of the situation that is acted on from now."""
        before, self.stragglers = self.stragglers, stragglers
        dwell = float(policy.dwell_seconds)
        if before.pipelines and not stragglers.pipelines:
            self.left_seconds = now
            if now - self.entered_seconds < SHORT_EPISODE_DWELLS * dwell:
                self.caution = min(self.caution + 1, MOST_CAUTION)
            self.stretch_after_seconds = now + dwell * 2**self.caution
        elif slows_somebody(before, stragglers):
            if not before.pipelines:
                self.entered_seconds = now
                while self.caution and now - self.left_seconds > CALM_DWELLS * dwell * 2**self.caution:
                    self.left_seconds += CALM_DWELLS * dwell * 2**self.caution
                    self.caution -= 1
            self.stretch_after_seconds = now + dwell * 2**self.caution


def assess(
    watch: JobWatch,
    plan: Plan,
    measured: Mapping[int, Measurement],
    policy: StragglerPolicy,
    announced: Mapping[int, float],
    now: float,
) -> Stragglers:
    """Return who straggles now, as far as it may be acted on now.

    Args:
        watch: what is remembered; its evidence is brought up to date.
        plan: in force.
        measured: by pipeline.
        policy: of the job.
        announced: by pipeline, the slowdown that another source tells of (1.2: a fifth slower than at full speed).
        now: monotonic seconds.
    """
    pipelines = len(plan.pipelines)
    if not policy.enabled or pipelines < 2:
        return Stragglers()
    fresh = {
        index
        for index, each in measured.items()
        if index < pipelines and _observe(watch, plan, index, each, policy, now)
    }
    common = _common(watch, pipelines)
    enter, leave = 1 + policy.enter_percent / 100, 1 + policy.leave_percent / 100
    for index, evidence in watch.evidence.items():
        if now - evidence.seen_seconds > policy.hold_seconds:
            evidence.expire()
        elif index in fresh:
            evidence.judge(common, enter, leave, watch.noise, 1 + watch.caution)
    times = _times(watch, plan, policy, announced, common)
    if not times or len(times) == pipelines:
        return Stragglers()
    slow = tuple(sorted(times))
    if slow == watch.stragglers.pipelines:
        if not _moved(watch, plan, times, announced, common):
            return watch.stragglers
        times = _times(watch, plan, policy, announced, common)
    found = Stragglers(slow, max(times.values()))
    if now >= watch.stretch_after_seconds or not slows_somebody(watch.stragglers, found):
        return found
    return both(watch.stragglers, found, pipelines)


def slows_somebody(before: Stragglers, after: Stragglers) -> bool:
    """Whether any pipeline gets more time than before."""
    if not after.pipelines:
        return False
    if not before.pipelines or after.deadline_seconds > before.deadline_seconds:
        return True
    return not set(before.pipelines) <= set(after.pipelines)


def both(one: Stragglers, other: Stragglers, pipelines: int) -> Stragglers:
    """Return the situation in which no pipeline gets more time than in either of two."""
    slow = tuple(sorted({*one.pipelines, *other.pipelines}))
    if not one.pipelines or not other.pipelines or len(slow) >= pipelines:
        return Stragglers()
    return Stragglers(slow, min(one.deadline_seconds, other.deadline_seconds))


def training_restarted(watch: JobWatch, plan: Plan, measured: Mapping[int, Measurement]) -> bool:
    """Whether training began anew (iterations count from 0 again) after the plan's first iteration had been reached."""
    for index, each in measured.items():
        highest = watch.highest_iteration.get(index, -1)
        if each.iteration < highest and highest >= plan.first_iteration and each.iteration < plan.first_iteration:
            return True
        watch.highest_iteration[index] = max(highest, each.iteration)
    return False


def full_seconds(plan: Plan) -> float:
    """Return the pipeline time at full speed, by which announcements are multiplied."""
    return plan.baseline.iteration_seconds


def _observe(watch: JobWatch, plan: Plan, index: int, each: Measurement, policy: StragglerPolicy, now: float) -> bool:
    """Take a pipeline's measurement; return whether it is new and counts."""
    evidence = watch.evidence.setdefault(index, Evidence())
    if each.iteration > watch.valid_from.get(index, plan.first_iteration):
        return evidence.take(each, planned_seconds(plan, index), policy.window_iterations, watch.noise, now)
    # An iteration under earlier clocks: it shows that the pipeline lives, and no more.
    evidence.seen_seconds = now
    evidence.skip(each)
    return False


def _common(watch: JobWatch, pipelines: int) -> float:
    """What everybody is slow by: measuring, messages, a profile from another machine. It makes nobody a straggler.

    A stretched plan takes that much longer than it says, too, so the time given to the others is divided by it.
    """
    known = [each.level for each in watch.evidence.values()]
    return max(1.0, min(known)) if len(known) == pipelines else 1.0


def _times(
    watch: JobWatch, plan: Plan, policy: StragglerPolicy, announced: Mapping[int, float], common: float
) -> dict[int, float]:
    """Time by slow pipeline: measured, or announced until what is measured is worse."""
    found: dict[int, float] = {}
    for index, evidence in watch.evidence.items():
        if evidence.slow and index < len(plan.pipelines):
            # No more than what is sure: stretching too far costs time.
            sure = evidence.level - (watch.noise.error(len(evidence.ratios)) if evidence.ratios else 0.0)
            found[index] = max(sure, 1.0) * planned_seconds(plan, index) / common
    for index, ratio in announced.items():
        if 0 <= index < len(plan.pipelines) and ratio > 1 + policy.enter_percent / 100:
            found[index] = max(found.get(index, 0.0), ratio * full_seconds(plan))
    return found


def _moved(
    watch: JobWatch, plan: Plan, times: Mapping[int, float], announced: Mapping[int, float], common: float
) -> bool:
    """Whether the time of the slow ones is surely another than the one acted on."""
    before = watch.stragglers.deadline_seconds
    below = True
    for index in times:
        evidence = watch.evidence.get(index)
        told = announced.get(index, 0.0) * full_seconds(plan)
        if told > before * (1 + RISE_TOLERANCE):
            return True
        below = below and told < before * (1 - FALL_TOLERANCE)
        if evidence is not None and evidence.slow:
            ratio = before * common / planned_seconds(plan, index)
            if evidence.rose_above(ratio * (1 + RISE_TOLERANCE), watch.noise):
                return True
            below = below and evidence.fell_below(ratio * (1 - FALL_TOLERANCE), watch.noise)
    return below


def _clocks_of(plan: Plan, pipeline: int) -> tuple[tuple[int, ...], ...]:
    return plan.variants[plan.pipelines[pipeline]].clocks


def _restarted(before: Plan, plan: Plan) -> bool:
    return plan.first_iteration < before.first_iteration
