"""Asks Prometheus about all jobs at once: two queries a round, whatever the number of jobs. Bounded, suspicious.

Nothing that a user writes enters a query, and an answer is only ever numbers by label: what does not look like that
is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from perseus_operator.counters import JobReadings, question, readings
from perseus_operator.stragglers import Measurement

JobKey = tuple[str, str]
_SECONDS, _ITERATION = "perseus_pipeline_seconds", "perseus_pipeline_iteration"
_BEGIN = "perseus_pipeline_iteration_begin_timestamp_seconds"
_PIPELINES = f'{{__name__=~"{_SECONDS}|{_ITERATION}|{_BEGIN}"}}'
_GENERATIONS = (
    'label_replace(min by (namespace, job) (perseus_plan_generation_accepted), "kind", "accepted", "", "")'
    ' or label_replace(min by (namespace, job) (perseus_plan_generation_active), "kind", "active", "", "")'
    ' or label_replace(count by (namespace, job) (perseus_plan_generation_active), "kind", "ranks", "", "")'
)
MAXIMUM_ANSWER_BYTES = 64 * 1024 * 1024
TIMEOUT_SECONDS = 5.0


class NoAnswer(Exception):
    """Prometheus is not there, or does not answer as it should."""


@dataclass
class JobReport:
    """What the agents of a job say together.

    Attributes:
        pipelines: measurements by pipeline.
        accepted: lowest newest generation of any rank.
        active: lowest generation that any rank runs.
        ranks: how many ranks report.
    """

    pipelines: dict[int, Measurement] = field(default_factory=dict)
    accepted: int = 0
    active: int = 0
    ranks: int = 0


class Prometheus:
    """A Prometheus server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        """Ask the server at a URL."""
        self._url = url
        self._session = session

    async def reports(self) -> dict[JobKey, JobReport]:
        """Return what is known of every job.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        found: dict[JobKey, JobReport] = {}
        for labels, value in await self._query(_GENERATIONS):
            report = found.setdefault(_key(labels), JobReport())
            if labels.get("kind") in ("accepted", "active", "ranks"):
                setattr(report, labels["kind"], int(value))
        for key, pipelines in _pipelines(await self._query(_PIPELINES)).items():
            found.setdefault(key, JobReport()).pipelines = pipelines
        return found

    async def counters(self, window_seconds: float) -> dict[JobKey, JobReadings]:
        """Return the agents' energy counters of every job over the last seconds.

        Raises:
            NoAnswer: Prometheus does not answer.
        """
        return readings(await self._query(question(window_seconds)))

    async def _query(self, query: str) -> list[tuple[dict[str, str], float]]:
        try:
            async with self._session.post(
                f"{self._url}/api/v1/query",
                data={"query": query},
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            ) as response:
                if response.status != 200:
                    raise NoAnswer(f"Prometheus answered {response.status}")
                if (response.content_length or 0) > MAXIMUM_ANSWER_BYTES:
                    raise NoAnswer(f"Prometheus's answer has {response.content_length} bytes")
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NoAnswer(f"Prometheus does not answer: {type(error).__name__} {error}") from None
        return samples(answer)


def samples(answer: Any) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each sample of an instant vector; what is no finite number is left out.

    Raises:
        NoAnswer: this is no answer of Prometheus.
    """
    try:
        if answer["status"] != "success" or answer["data"]["resultType"] != "vector":
            raise NoAnswer("Prometheus refused the query")
        found = []
        for sample in answer["data"]["result"]:
            value = float(sample["value"][1])
            labels = sample["metric"]
            if math.isfinite(value) and all(isinstance(each, str) for each in labels.values()):
                found.append((labels, value))
        return found
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise NoAnswer("this is no answer of Prometheus") from None


def _pipelines(found: list[tuple[dict[str, str], float]]) -> dict[JobKey, dict[int, Measurement]]:
    by_pod: dict[tuple[JobKey, int, str], dict[str, float]] = {}
    for labels, value in found:
        number = labels.get("pipeline", "")
        if number.isdigit() and len(number) < 7:
            place = (_key(labels), int(number), labels.get("pod", ""))
            by_pod.setdefault(place, {})[labels.get("__name__", "")] = value
    newest: dict[JobKey, dict[int, Measurement]] = {}
    for (key, pipeline, _), values in by_pod.items():
        iteration = values.get(_ITERATION)
        begin = values.get(_BEGIN)
        if iteration is None or begin is None:
            continue
        measurement = Measurement(values.get(_SECONDS), int(iteration), begin)
        known = newest.setdefault(key, {}).get(pipeline)
        # A dead pod's last words may still show: the living one began its iteration later.
        if measurement.is_sound and (known is None or measurement.begin_seconds > known.begin_seconds):
            newest[key][pipeline] = measurement
    return newest


def _key(labels: dict[str, str]) -> JobKey:
    return labels.get("namespace", ""), labels.get("job", "")
