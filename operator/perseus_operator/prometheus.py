"""Asks Prometheus about all jobs at once: a few questions a round, whatever the number of jobs. Suspicious.

Nothing that a user writes enters a question of ours, and an answer is only ever numbers by label: what does not look
like that is left out. Pipeline times are asked for as the agents exported them: a recording rule would show them up to
one evaluation later. The heavy sums over all GPUs are read from recording rules where Prometheus has them, and
computed at each question where it has not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from perseus_api.instructions import Instruction
from perseus_api.metrics import RECORDING_RULES_VERSION

from perseus_operator.counters import JobReadings, question, readings
from perseus_operator.drift import Bounds, Work
from perseus_operator.measurements import Measurement
from perseus_operator.transport import Connection, NoAnswer, Sample, samples
from perseus_operator.troubles import QUESTION as _TROUBLES
from perseus_operator.troubles import Trouble, read_troubles
from perseus_operator.vectors import decode_vector

JobKey = tuple[str, str]
_SECONDS, _ITERATION = "perseus_pipeline_seconds", "perseus_pipeline_iteration"
_BEGIN = "perseus_pipeline_iteration_begin_timestamp_seconds"
_PIPELINES = f'{{__name__=~"{_SECONDS}|{_ITERATION}|{_BEGIN}"}}'
# An agent's page is scraped as a whole: one time for each agent, not one for each of ten thousand pipelines.
_SCRAPED = "timestamp(perseus_agent_build_info)"
_ACCEPTED, _ACTIVE = "perseus_plan_generation_accepted", "perseus_plan_generation_active"
_RAW_GENERATIONS = " or ".join(
    f'label_replace(count_values by (namespace, job) ("generation", {name}), "kind", "{kind}", "", "")'
    for name, kind in ((_ACCEPTED, "accepted"), (_ACTIVE, "active"))
)
_RECORDED_GENERATIONS = '{__name__="perseus:plan_generation:ranks"}'
_SLOWDOWN_OF_WORK = " / ".join(
    f"sum by (namespace, job, pipeline, stage, instruction) (rate(perseus_instruction_{kind}_seconds_total[2m]))"
    for kind in ("compared", "expected")
)
_RAW_DRIFT = " or ".join(
    f'label_replace({pick} by (namespace, job, stage, instruction) ({_SLOWDOWN_OF_WORK}), "bound", "{bound}", "", "")'
    for pick, bound in (("min", "least"), ("max", "most"))
)
_RECORDED_DRIFT = '{__name__="perseus:instruction_drift:ratio"}'
_RULES = "perseus:rules:version"
_RULES_SECONDS = 30.0
_SLOTS = {_SECONDS: 0, _ITERATION: 1, _BEGIN: 2}
_HISTORY = f"{_SECONDS}[3m]"
_HISTORY_TIMEOUT_SECONDS = 10.0
_COUNTERS_TIMEOUT_SECONDS = 10.0
_INSTRUCTIONS = frozenset(each.value for each in Instruction)

__all__ = ["JobKey", "JobReport", "NoAnswer", "Prometheus"]


@dataclass
class JobReport:
    """What the agents of a job say together.

    Attributes:
        pipelines: measurements by pipeline; one pod speaks for each.
        pods: what every pod says, by pipeline.
        accepted: how many ranks hold which newest generation.
        active: how many ranks run which generation.
        troubles: ranks whose plan is not followed.
        answered_seconds: monotonic time of the answer.
    """

    pipelines: dict[int, Measurement] = field(default_factory=dict)
    pods: dict[int, list[Measurement]] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)
    troubles: tuple[Trouble, ...] = ()
    answered_seconds: float = 0.0

    @property
    def ranks(self) -> int:
        """How many ranks report."""
        return sum(self.active.values())

    @property
    def least_accepted(self) -> int:
        """The lowest newest generation that a rank holds."""
        return min(self.accepted, default=0)

    @property
    def least_active(self) -> int:
        """The lowest generation that a rank runs."""
        return min(self.active, default=0)


class Prometheus:
    """A Prometheus server that scrapes the agents.

    Attributes:
        has_rules: whether it has this version's recording rules; None until asked.
    """

    def __init__(self, connection: Connection) -> None:
        """Ask over a connection."""
        self._connection = connection
        self.has_rules: bool | None = None
        self._rules_asked = float("-inf")

    async def reports(self) -> dict[JobKey, JobReport]:
        """Return what is known of every job.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        await self._look_for_rules()
        question = _RECORDED_GENERATIONS if self.has_rules else _RAW_GENERATIONS
        found: dict[JobKey, JobReport] = {}
        for labels, value in samples(await self._connection.ask(question)):
            generation, kind = labels.get("generation", ""), labels.get("kind")
            if kind in ("accepted", "active") and _is_whole(generation):
                report = found.setdefault(_key(labels), JobReport())
                counts: dict[int, int] = getattr(report, kind)
                counts[round(float(generation))] = int(value)
        # A scrape between the two makes measurements look older than they are: plans then begin later, never too early.
        scraped = await self._connection.body(_SCRAPED)
        pipelines = read_pipelines(await self._connection.body(_PIPELINES), scraped)
        troubles = read_troubles(await self._connection.ask(_TROUBLES))
        now = time.monotonic()
        for key, each in troubles.items():
            found.setdefault(key, JobReport()).troubles = each
        for key, pods in pipelines.items():
            found.setdefault(key, JobReport()).pods = pods
        for report in found.values():
            report.answered_seconds = now
        return found

    async def counters(self, window_seconds: float) -> dict[JobKey, JobReadings]:
        """Return the agents' energy counters of every job over the last seconds.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        return readings(samples(await self._connection.ask(question(window_seconds), _COUNTERS_TIMEOUT_SECONDS)))

    async def drifts(self) -> dict[JobKey, dict[Work, Bounds]]:
        """Return what the instructions of every job's stages take over what they should.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        question = _RECORDED_DRIFT if self.has_rules else _RAW_DRIFT
        return read_drifts(samples(await self._connection.ask(question)))

    async def history(self) -> dict[JobKey, dict[int, list[float]]]:
        """Return the last minutes' pipeline times of every job, oldest first: what an operator that starts anew missed.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        return read_history(await self._connection.ask(_HISTORY, _HISTORY_TIMEOUT_SECONDS))

    async def _look_for_rules(self) -> None:
        now = time.monotonic()
        if now - self._rules_asked < _RULES_SECONDS:
            return
        found = samples(await self._connection.ask(_RULES))
        self.has_rules = any(value == RECORDING_RULES_VERSION for _, value in found)
        self._rules_asked = now


def read_pipelines(body: bytes, scraped_body: bytes) -> dict[JobKey, dict[int, list[Measurement]]]:
    """Return what each pod says of its pipeline.

    Args:
        body: answer about the pipelines.
        scraped_body: answer about the agents' pages: when each was scraped.

    Raises:
        NoAnswer: one of them is no instant vector of Prometheus.
    """
    scraped: dict[str, float] = {}
    for labels, moment in decode_vector(scraped_body)[1]:
        # Of two pages of one name the older: plans then begin later, never too early.
        scraped[labels.instance] = min(moment, scraped.get(labels.instance, math.inf))
    by_pod: dict[tuple[str, str, str, str], list[float | None]] = {}
    answered, speaking = decode_vector(body)
    for labels, value in speaking:
        slot = _SLOTS.get(labels.name)
        if slot is None:
            continue
        place = (labels.namespace, labels.job, labels.pipeline, labels.pod)
        values = by_pod.get(place)
        if values is None:
            by_pod[place] = values = [None, None, None, scraped.get(labels.instance)]
        values[slot] = value
    found: dict[JobKey, dict[int, list[Measurement]]] = {}
    for (namespace, job, pipeline, pod), (seconds, iteration, begin, when) in by_pod.items():
        number = _pipeline(pipeline)
        if number is None or iteration is None or not -1 < iteration < 2**53:
            continue
        age = max(0.0, answered - when) if when is not None else 0.0
        measurement = Measurement(seconds, int(iteration), begin, when, age, pod)
        if measurement.is_sound:
            found.setdefault((namespace, job), {}).setdefault(number, []).append(measurement)
    return found


def read_drifts(found: list[Sample]) -> dict[JobKey, dict[Work, Bounds]]:
    """Return the bounds of each stage's instructions that an answer tells both of."""
    values: dict[tuple[JobKey, Work], dict[str, float]] = {}
    for labels, value in found:
        stage, instruction = _pipeline(labels.get("stage")), labels.get("instruction")
        if stage is not None and instruction in _INSTRUCTIONS:
            place = (_key(labels), (stage, Instruction(instruction)))
            values.setdefault(place, {})[labels.get("bound", "")] = value
    drifts: dict[JobKey, dict[Work, Bounds]] = {}
    for (key, work), bounds in values.items():
        if "least" in bounds and "most" in bounds:
            drifts.setdefault(key, {})[work] = Bounds(bounds["least"], bounds["most"])
    return drifts


def read_history(data: Any) -> dict[JobKey, dict[int, list[float]]]:
    """Return pipeline times of a range vector, oldest first, each measurement once.

    Raises:
        NoAnswer: this is no answer of Prometheus.
    """
    found: dict[JobKey, dict[int, list[float]]] = {}
    try:
        if data["resultType"] != "matrix":
            raise NoAnswer("Prometheus's answer is not a range vector")
        for series in data["result"]:
            labels = series["metric"]
            number = _pipeline(labels.get("pipeline", ""))
            if number is None:
                continue
            times = found.setdefault(_key(labels), {}).setdefault(number, [])
            for _, text in series["values"]:
                value = float(text)
                if 0 < value < 1e6 and (not times or times[-1] != value):
                    times.append(value)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise NoAnswer("this is no answer of Prometheus") from None
    return found


def _pipeline(text: object) -> int | None:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 7 else None


def _is_whole(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return 0 <= value < 2**53 and value == int(value)


def _key(labels: dict[str, str]) -> JobKey:
    return labels.get("namespace", ""), labels.get("job", "")
