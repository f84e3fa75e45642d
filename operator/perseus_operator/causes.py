"""Why a pipeline is slow, and where: named from what the agents see of each GPU. Pure, but for one question.

A rank's slowdown is what its instructions took over what the profile says they take at the clock they were told to
run, so that it is free of waiting. Where a rank's own instructions are slow, its clock event reasons tell power from
heat; without a reason it is the chip. Where no rank's are, the time is lost between them: network or input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perseus_operator.prometheus import JobKey
from perseus_operator.transport import Connection, Sample, samples

HEAT_REASONS = frozenset({"sw_thermal_slowdown", "hw_thermal_slowdown"})
POWER_REASONS = frozenset({"sw_power_cap", "hw_power_brake_slowdown", "hw_slowdown"})
# A rank explains a pipeline's slowdown if it is slower by at least this part of it: a stage that is off the critical
# path, or slow for a part of the window only, is no explanation.
_EXPLAINING_PART = 0.4
_LABELS = "namespace, job, pipeline, stage, tensor_rank, pod, gpu"
_RAW_SLOWDOWN = (
    f"(sum by ({_LABELS}) (rate(perseus_instruction_compared_seconds_total[1m]))"
    f" / sum by ({_LABELS}) (rate(perseus_instruction_expected_seconds_total[1m])))"
)
_RECORDED_SLOWDOWN = "perseus:rank_slowdown:ratio"
_KNOWN_REASONS = f'reason=~"{"|".join(sorted(HEAT_REASONS | POWER_REASONS))}"'
# A reason may come and go between scrapes: the agent also counts the time in which it held a clock down.
_REASONS = (
    f"(perseus_gpu_clock_event_active{{{_KNOWN_REASONS}}} == 1)"
    f" or (rate(perseus_clock_not_held_seconds_total{{{_KNOWN_REASONS}}}[1m]) > 0.02)"
)


class Cause(StrEnum):
    """Of a pipeline's slowness, as conditions, events and metrics name it."""

    POWER_CAP = "PowerCap"
    HEAT = "Heat"
    SLOW_CHIP = "SlowChip"
    SEVERAL_GPUS = "SeveralGpusSlow"
    NETWORK_OR_INPUT = "NetworkOrInput"
    ANNOUNCED = "Announced"
    QUERY = "Query"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Finding:
    """A cause and its place; the place is empty where there is none."""

    cause: Cause
    pod: str = ""
    gpu: str = ""
    stage: str = ""
    slowdown: float = 0.0


@dataclass
class RankFacts:
    """What is known of one rank.

    Attributes:
        pod: name.
        gpu: UUID.
        stage: of the pipeline.
        slowdown: of its instructions, over the last minute; None if unknown.
        reasons: clock event reasons in force.
    """

    pod: str = ""
    gpu: str = ""
    stage: str = ""
    slowdown: float | None = None
    reasons: set[str] = field(default_factory=set)


Facts = dict[JobKey, dict[int, list[RankFacts]]]


def find_cause(facts: Iterable[RankFacts], ratio: float) -> Finding:
    """Name the cause of a pipeline's slowness.

    Args:
        facts: of the pipeline's ranks.
        ratio: measured over planned time of the pipeline.
    """
    ranks = list(facts)
    known = [each for each in ranks if each.slowdown is not None]
    limit = 1 + _EXPLAINING_PART * max(0.0, ratio - 1)
    slow = sorted((each for each in known if (each.slowdown or 0.0) >= limit), key=lambda each: -(each.slowdown or 0.0))
    if not known:
        # No instruction times: a reason in force is the best that there is.
        for each in ranks:
            if each.reasons & HEAT_REASONS:
                return _at(Cause.HEAT, each)
        for each in ranks:
            if each.reasons & POWER_REASONS:
                return _at(Cause.POWER_CAP, each)
        return Finding(Cause.UNKNOWN)
    if not slow:
        return Finding(Cause.NETWORK_OR_INPUT)
    for each in slow:
        if each.reasons & HEAT_REASONS:
            return _at(Cause.HEAT, each)
        if each.reasons & POWER_REASONS:
            return _at(Cause.POWER_CAP, each)
    return _at(Cause.SLOW_CHIP if len(slow) == 1 else Cause.SEVERAL_GPUS, slow[0])


async def ask_facts(connection: Connection, has_rules: bool) -> Facts:
    """Ask for the facts of all jobs' ranks, with two questions.

    Raises:
        NoAnswer: Prometheus does not answer.
    """
    slowdowns = samples(await connection.ask(_RECORDED_SLOWDOWN if has_rules else _RAW_SLOWDOWN))
    return gather_facts(slowdowns, samples(await connection.ask(_REASONS)))


def gather_facts(slowdowns: list[Sample], reasons: list[Sample]) -> Facts:
    """Bring what is told of ranks together, by job and pipeline."""
    ranks: dict[tuple[str, ...], RankFacts] = {}
    for labels, value in slowdowns:
        if 0 < value < 1e6:
            _rank(ranks, labels).slowdown = value
    for labels, _ in reasons:
        _rank(ranks, labels).reasons.add(labels.get("reason", ""))
    found: Facts = {}
    for (namespace, job, pipeline, *_), facts in ranks.items():
        if pipeline.isascii() and pipeline.isdigit() and len(pipeline) < 7:
            found.setdefault((namespace, job), {}).setdefault(int(pipeline), []).append(facts)
    return found


def _rank(ranks: dict[tuple[str, ...], RankFacts], labels: Mapping[str, str]) -> RankFacts:
    place = tuple(labels.get(name, "") for name in _LABELS.split(", "))
    return ranks.setdefault(place, RankFacts(pod=place[5], gpu=place[6], stage=place[3]))


def _at(cause: Cause, rank: RankFacts) -> Finding:
    return Finding(cause, rank.pod[:253], rank.gpu[:96], rank.stage[:8], rank.slowdown or 0.0)
