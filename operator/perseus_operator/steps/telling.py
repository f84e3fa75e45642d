"""What the conditions say of a plan that was written: who runs it, and who is slow. Pure."""

from __future__ import annotations

from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import Plan

from perseus_operator.monitor import Monitor
from perseus_operator.planning import Stragglers
from perseus_operator.profiles import LoadedProfile, Source
from perseus_operator.visit import Visit


def tell_profile(visit: Visit, loaded: LoadedProfile) -> None:
    """Say which profile is used, and what measuring it has cost."""
    profile = loaded.profile
    words = f"{profile.stages} stages at {loaded.clocks} clocks, {profile.header.gpu_model or 'unnamed GPU'}"
    if loaded.source is Source.CACHED:
        words += ", from the cache"
    elif loaded.sweep_iterations is not None and loaded.sweep_slowdown_permille is not None:
        words += (
            f", measured in {loaded.sweep_iterations} iterations that were {loaded.sweep_slowdown_permille / 10:.1f} % "
            "longer than unlocked on average"
        )
    visit.story.say(Condition.PROFILE_VALID, True, Reason.PROFILE_LOADED, words)


def tell_applied(visit: Visit, monitor: Monitor, spec: PerseusJobSpec, plan: Plan) -> None:
    """Say whether all agents run the plan."""
    watched = monitor.find(visit.key)
    report = watched.report if watched else None
    ranks = spec.parallelism.ranks
    if monitor.answered is not True or report is None or report.ranks < ranks:
        seen = report.ranks if report else 0
        reason = Reason.WAITING_FOR_AGENTS if monitor.answered else Reason.NO_MEASUREMENTS
        words = f"agents of {seen} of {ranks} ranks are seen in Prometheus"
        if monitor.answered is None:
            words = "no Prometheus is configured (prometheus.url in the chart): agents are not seen"
        elif monitor.answered is False:
            words = "Prometheus does not answer: agents are not seen"
        visit.story.say(Condition.PLAN_APPLIED, None, reason, words)
    elif report.accepted < plan.generation:
        words = f"generation {plan.generation} is on its way to the agents"
        visit.story.say(Condition.PLAN_APPLIED, False, Reason.WAITING_FOR_AGENTS, words)
    elif report.active < plan.generation:
        reason = Reason.WAITING_FOR_AGENTS if report.active else Reason.MEASURING_BASELINE
        words = f"generation {plan.generation} holds from iteration {plan.first_iteration}"
        visit.story.say(Condition.PLAN_APPLIED, False, reason, words)
    else:
        words = f"all {ranks} ranks run generation {plan.generation}"
        visit.story.say(Condition.PLAN_APPLIED, True, Reason.ALL_AGENTS, words)


def tell_stragglers(visit: Visit, monitor: Monitor, spec: PerseusJobSpec, plan: Plan, stragglers: Stragglers) -> None:
    """Say who is slow, and what the others do about it."""
    say = visit.story.say
    if stragglers.pipelines:
        slow = ", ".join(str(index) for index in stragglers.pipelines[:10])
        words = f"pipeline {slow} is slow: the others take {stragglers.deadline_seconds:.3f} s for an iteration"
        say(Condition.STRAGGLING, True, Reason.PIPELINE_SLOW, words)
    elif not spec.straggler.enabled:
        say(Condition.STRAGGLING, False, Reason.STRAGGLERS_IGNORED, "spec.straggler.enabled is false")
    elif len(plan.pipelines) < 2:
        say(Condition.STRAGGLING, False, Reason.NO_STRAGGLER, "one pipeline alone has nobody to wait for")
    elif monitor.answered is not True:
        say(Condition.STRAGGLING, None, Reason.NO_MEASUREMENTS, "pipeline times are not seen in Prometheus")
    else:
        say(Condition.STRAGGLING, False, Reason.NO_STRAGGLER, "all pipelines keep their time")
