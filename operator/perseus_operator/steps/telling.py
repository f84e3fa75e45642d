"""What the conditions say of a plan that was written: who runs it, and who is slow. Pure."""

from __future__ import annotations

import contextlib

from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import Plan
from perseus_api.profile import ProfileHeader

from perseus_operator.causes import Cause
from perseus_operator.monitor import Monitor, WatchedJob
from perseus_operator.planning import Stragglers
from perseus_operator.profiles import LoadedProfile, Source
from perseus_operator.profiling.waiting import BLOCKING_ERROR
from perseus_operator.prometheus import JobReport
from perseus_operator.steps.drift import Drift
from perseus_operator.troubles import told
from perseus_operator.visit import StragglerFinding, Visit

# From here on "all slow" is worth a word.
ALL_SLOW_RATIO = 1.03
_REASONS = {
    Cause.POWER_CAP: Reason.POWER_CAP,
    Cause.HEAT: Reason.HEAT,
    Cause.SLOW_CHIP: Reason.SLOW_CHIP,
    Cause.SEVERAL_GPUS: Reason.SEVERAL_GPUS_SLOW,
    Cause.NETWORK_OR_INPUT: Reason.NETWORK_OR_INPUT,
    Cause.ANNOUNCED: Reason.ANNOUNCED,
    Cause.QUERY: Reason.QUERY,
}
_CAUSES = {
    Cause.POWER_CAP: "power cap",
    Cause.HEAT: "heat",
    Cause.SLOW_CHIP: "slower chip, at the clock that it was told to run and without an event reason",
    Cause.SEVERAL_GPUS: "several GPUs are slow, the slowest",
    Cause.NETWORK_OR_INPUT: "its instructions take their time, the gaps between them are long: network or input",
    Cause.ANNOUNCED: "announced by a node's annotation",
    Cause.QUERY: "by spec.straggler.query",
}


def tell_profile(visit: Visit, loaded: LoadedProfile, drift: Drift) -> None:
    """Say which profile is used, what measuring it has cost, and whether it still holds."""
    profile = loaded.profile
    words = f"{profile.stages} stages at {loaded.clocks} clocks, {profile.header.gpu_model or 'unnamed GPU'}"
    if loaded.source is Source.CACHED:
        words += ", from the cache"
    elif loaded.sweep_iterations is not None and loaded.sweep_slowdown_permille is not None:
        words += (
            f", measured in {loaded.sweep_iterations} iterations that were {loaded.sweep_slowdown_permille / 10:.1f} % "
            "longer than unlocked on average"
        )
    words += _inexact_blocking(profile.header)
    if not drift.corrections.factors:
        visit.story.say(Condition.PROFILE_VALID, True, Reason.PROFILE_LOADED, words)
        return
    words += f"; instructions take up to {drift.corrections.largest:.3f} of its times, which are corrected"
    if drift.remark:
        words += f"; {drift.remark}"
    visit.story.say(Condition.PROFILE_VALID, True, Reason.PROFILE_DRIFTED, words)


def _inexact_blocking(header: ProfileHeader) -> str:
    """Return how well the power of waiting is known, of the GPU of which it is known worst; empty if well enough."""
    powers = [(each.blocking_power_watts, each.blocking_power_watts_stderr) for each in header.stage_gpus or (header,)]
    watts, stderr = max(powers, key=lambda power: power[1] - BLOCKING_ERROR * power[0])
    if stderr <= BLOCKING_ERROR * watts:
        return ""
    return f"; the power of waiting, {watts:.1f} W, has a standard error of {stderr:.1f} W"


def tell_applied(visit: Visit, monitor: Monitor, spec: PerseusJobSpec, plan: Plan) -> None:
    """Say whether all agents run the plan."""
    watched = monitor.find(visit.key)
    report = watched.sight.report if watched else None
    ranks = spec.parallelism.ranks
    if monitor.answered is True and report is not None and report.troubles:
        visit.story.say(Condition.PLAN_APPLIED, False, *told(report.troubles))
    elif monitor.answered is not True or report is None or report.ranks < ranks:
        seen = report.ranks if report else 0
        reason = Reason.WAITING_FOR_AGENTS if monitor.answered else Reason.NO_MEASUREMENTS
        words = f"agents of {seen} of {ranks} ranks are seen in Prometheus"
        if monitor.answered is None:
            words = "no Prometheus is configured (prometheus.url in the chart): agents are not seen"
        elif monitor.answered is False:
            words = f"{monitor.failure}: agents are not seen"
        visit.story.say(Condition.PLAN_APPLIED, None, reason, words)
    elif report.ranks > ranks:
        words = (
            f"{report.ranks} ranks report, the job has {ranks}: pods of before are still ending, two pods say to be "
            "one rank (PERSEUS_RANK), or more train than spec.parallelism describes"
        )
        visit.story.say(Condition.PLAN_APPLIED, None, Reason.RANK_TWICE, words)
    elif report.least_accepted < plan.generation:
        words = f"generation {plan.generation} is on its way to the agents"
        visit.story.say(Condition.PLAN_APPLIED, False, Reason.WAITING_FOR_AGENTS, words)
    elif not report.least_active and _has_begun(watched, report, plan):
        idle = report.active[0]
        words = f"generation {plan.generation} is at every agent; {idle} of {ranks} ranks have begun no iteration since"
        visit.story.say(Condition.PLAN_APPLIED, False, Reason.WAITING_FOR_AGENTS, words)
    elif report.least_active < plan.generation:
        reason = Reason.WAITING_FOR_AGENTS if report.least_active else Reason.MEASURING_BASELINE
        words = f"generation {plan.generation} holds from iteration {plan.first_iteration}"
        visit.story.say(Condition.PLAN_APPLIED, False, reason, words)
    else:
        words = f"all {ranks} ranks run generation {plan.generation}"
        visit.story.say(Condition.PLAN_APPLIED, True, Reason.ALL_AGENTS, words)


def _has_begun(watched: WatchedJob | None, report: JobReport, plan: Plan) -> bool:
    """Whether the baseline is over, by what any rank runs or any pipeline has reached."""
    reached = watched.watch.highest_iteration.values() if watched is not None else ()
    return max(report.active) > 0 or max(reached, default=-1) >= plan.first_iteration


def tell_as_before(visit: Visit, monitor: Monitor, plan: Plan) -> None:
    """Say again what an earlier operator said of this plan, while this one has not seen enough to say otherwise."""
    watched = monitor.find(visit.key)
    status = visit.job.get("status") or {}
    if watched is None or watched.sight.report is not None:
        return
    if (status.get("plan") or {}).get("generation") != plan.generation:
        return
    for each in status.get("conditions") or []:
        if each.get("type") in (Condition.PLAN_APPLIED, Condition.OBSERVED, Condition.STRAGGLING):
            with contextlib.suppress(KeyError, ValueError):  # A person may have edited the status.
                told = each["status"], Reason(each["reason"]), str(each["message"])
                visit.story.told[Condition(each["type"])] = told


def tell_observed(visit: Visit, monitor: Monitor, spec: PerseusJobSpec) -> None:
    """Say whether the straggler loop sees what it needs."""
    say = visit.story.say
    job = monitor.find(visit.key)
    problems = monitor.sources.problems(visit.key)
    pipelines = spec.parallelism.pipelines
    seen = len(job.sight.report.pipelines) if job is not None and job.sight.report is not None else 0
    if not spec.straggler.enabled or pipelines < 2:
        say(Condition.OBSERVED, True, Reason.STRAGGLERS_IGNORED, "nobody looks for stragglers of this job")
    elif monitor.answered is None:
        say(Condition.OBSERVED, False, Reason.NO_MEASUREMENTS, "no Prometheus is configured (prometheus.url)")
    elif monitor.answered is False:
        hold = f"the last plan holds for {spec.straggler.hold_seconds} s, then the plan without stragglers returns"
        say(Condition.OBSERVED, False, Reason.NO_MEASUREMENTS, f"{monitor.failure}; {hold}")
    elif problems:
        reason, _ = problems[0]
        say(Condition.OBSERVED, False, reason, "; ".join(words for _, words in problems))
    elif seen < pipelines:
        words = f"{seen} of {pipelines} pipelines are seen to move in Prometheus"
        say(Condition.OBSERVED, False, Reason.NO_MEASUREMENTS, words)
    elif monitor.has_rules is False:
        words = (
            f"all {pipelines} pipelines are seen; Prometheus lacks this version's recording rules (prometheus.rules in "
            "the chart): sums over all GPUs are computed at each question"
        )
        say(Condition.OBSERVED, True, Reason.RULES_MISSING, words)
    else:
        say(Condition.OBSERVED, True, Reason.SOURCES_ANSWER, f"all {pipelines} pipelines are seen")


def tell_stragglers(visit: Visit, monitor: Monitor, spec: PerseusJobSpec, plan: Plan, stragglers: Stragglers) -> None:
    """Say who is slow, why, and what the others do about it."""
    say = visit.story.say
    if stragglers.pipelines:
        first = visit.findings[0] if visit.findings else None
        reason = _REASONS.get(first.finding.cause, Reason.PIPELINE_SLOW) if first else Reason.PIPELINE_SLOW
        findings = "; ".join(_words_of(each) for each in visit.findings[:5])
        more = len(stragglers.pipelines) - min(5, len(visit.findings))
        words = f"{findings}{f'; and {more} more' if more else ''}"
        words += f": the others take {stragglers.deadline_seconds:.3f} s for an iteration"
        say(Condition.STRAGGLING, True, reason, words)
    elif not spec.straggler.enabled:
        say(Condition.STRAGGLING, False, Reason.STRAGGLERS_IGNORED, "spec.straggler.enabled is false")
    elif len(plan.pipelines) < 2:
        say(Condition.STRAGGLING, False, Reason.NO_STRAGGLER, "one pipeline alone has nobody to wait for")
    elif monitor.answered is not True:
        say(Condition.STRAGGLING, None, Reason.NO_MEASUREMENTS, "pipeline times are not seen in Prometheus")
    else:
        say(Condition.STRAGGLING, False, Reason.NO_STRAGGLER, _calm_words(visit, monitor))


def _calm_words(visit: Visit, monitor: Monitor) -> str:
    job = monitor.find(visit.key)
    common = min((each.level for each in job.watch.evidence.values()), default=1.0) if job is not None else 1.0
    if job is not None and len(job.watch.evidence) == len(job.plan.pipelines) and common > ALL_SLOW_RATIO:
        return f"all pipelines take {100 * (common - 1):.0f} % longer than planned: nobody waits for another"
    return "all pipelines keep their time"


def _words_of(each: StragglerFinding) -> str:
    finding = each.finding
    words = f"pipeline {each.pipeline} is slow by {100 * (each.ratio - 1):.0f} %"
    why = _CAUSES.get(finding.cause, "")
    place = ", ".join(
        f"{name} {value}"
        for name, value in (("pod", finding.pod), ("node", each.node), ("stage", finding.stage), ("GPU", finding.gpu))
        if value
    )
    return words + (f" ({why}{': ' if place else ''}{place})" if why else "")
