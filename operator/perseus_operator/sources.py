"""What else tells of slow pipelines: PromQL in a job's spec, and announcements on nodes. Asked seldom, kept bounded.

An announcement (annotation `perseus.energy/expected-slowdown` on a node) says before it happens that a power cap or
works on the cooling will slow the node down; it holds for every pipeline that has a pod there. Both count until what is
measured is worse. What cannot be read is told in a condition, and slows nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from perseus_api import names
from perseus_api.conditions import Reason
from perseus_api.job import PerseusJobSpec

from perseus_operator import metrics
from perseus_operator.children import COMPONENT_TRAINER
from perseus_operator.client import API_TROUBLES, NODE, POD, Api
from perseus_operator.prometheus import JobKey
from perseus_operator.transport import Connection, NoAnswer, Sample, samples
from perseus_operator.workloads import gpus_of

QUERY_SECONDS = 15.0
QUERY_TIMEOUT_SECONDS = 2.0
QUERY_MAXIMUM_BYTES = 8 * 1024 * 1024
ANNOUNCEMENT_SECONDS = 5.0
MOST_SLOWDOWN = 10.0
_RATIO = re.compile(r"[0-9]{1,2}(\.[0-9]{1,6})?", re.ASCII)
Ratios = dict[int, float]
Jobs = Callable[[], Mapping[JobKey, PerseusJobSpec]]
logger = logging.getLogger("perseus.operator")


@dataclass
class Told:
    """What one source says of one job.

    Attributes:
        ratios: slowdown by pipeline.
        told_seconds: monotonic time at which it said so.
        problem: why it says nothing now; empty if it does.
    """

    ratios: Ratios = field(default_factory=dict)
    told_seconds: float = 0.0
    problem: str = ""


class Sources:
    """Both sources of all jobs, kept fresh by two tasks."""

    def __init__(self, jobs: Jobs) -> None:
        """Ask for the jobs that a function names."""
        self._jobs = jobs
        self._queries: dict[JobKey, Told] = {}
        self._nodes: dict[JobKey, Told] = {}

    def ratios(self, key: JobKey, hold_seconds: float, now: float) -> Ratios:
        """Return the slowdowns that are told of a job's pipelines; what was told too long ago is gone."""
        found: Ratios = {}
        for source in (self._queries, self._nodes):
            told = source.get(key)
            if told is not None and now - told.told_seconds <= hold_seconds:
                for index, ratio in told.ratios.items():
                    found[index] = max(found.get(index, 0.0), ratio)
        return found

    def announced(self, key: JobKey, pipeline: int) -> bool:
        """Whether a node's annotation tells of a pipeline."""
        told = self._nodes.get(key)
        return told is not None and pipeline in told.ratios

    def problems(self, key: JobKey) -> list[tuple[Reason, str]]:
        """Return what is wrong with a job's sources."""
        found = []
        for reason, source in ((Reason.QUERY_FAILED, self._queries), (Reason.ANNOUNCEMENT_INVALID, self._nodes)):
            told = source.get(key)
            if told is not None and told.problem:
                found.append((reason, told.problem))
        return found

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone."""
        self._queries.pop(key, None)
        self._nodes.pop(key, None)

    async def run_queries(self, connection: Connection) -> None:
        """Ask the queries of specs, one at a time, until cancelled."""
        while True:
            begin = time.monotonic()
            wanted = {key: spec for key, spec in self._jobs().items() if spec.straggler.query}
            for key in self._queries.keys() - wanted.keys():
                del self._queries[key]
            for key, spec in wanted.items():
                await self._ask(connection, key, spec)
            await asyncio.sleep(max(1.0, QUERY_SECONDS - (time.monotonic() - begin)))

    async def run_announcements(self, api: Api) -> None:
        """Read the nodes' annotations until cancelled."""
        trouble = ""
        while True:
            if self._jobs():
                try:
                    await self.read_nodes(api)
                    trouble = ""
                except API_TROUBLES as error:
                    metrics.SOURCE_ERRORS.labels(source="announcement").inc()
                    if str(error) != trouble:
                        trouble = str(error)
                        logger.warning("nodes' annotations: %s", error)
            await asyncio.sleep(ANNOUNCEMENT_SECONDS)

    async def read_nodes(self, api: Api) -> None:
        """Read the nodes' annotations, and which pipelines have a pod on an annotated node.

        Raises:
            ApiRefusal: the API server refused.
        """
        jobs = self._jobs()
        found: dict[JobKey, Told] = {}
        now = time.monotonic()
        for node in await api.find_metadata(NODE):
            metadata = node.get("metadata") or {}
            text = (metadata.get("annotations") or {}).get(names.ANNOTATION_EXPECTED_SLOWDOWN)
            if text is None:
                continue
            ratio, name = slowdown_of(text), str(metadata.get("name", ""))
            selector = f"{names.LABEL_JOB},{names.LABEL_COMPONENT}={COMPONENT_TRAINER}"
            for pod in await api.find(POD, "", selector, field_selector=f"spec.nodeName={name}"):
                key, pipelines = pipelines_of(pod, jobs)
                if not pipelines:
                    continue
                told = found.setdefault(key, Told(told_seconds=now))
                if ratio is None:
                    told.problem = (
                        f"node {name}: annotation {names.ANNOTATION_EXPECTED_SLOWDOWN} is {text[:40]!r}; write a "
                        f"decimal number from 1 to {MOST_SLOWDOWN:g}, such as 1.2"
                    )
                    continue
                for index in pipelines:
                    told.ratios[index] = max(told.ratios.get(index, 0.0), ratio)
        self._nodes = found

    async def _ask(self, connection: Connection, key: JobKey, spec: PerseusJobSpec) -> None:
        known = self._queries.setdefault(key, Told())
        try:
            data = await connection.ask(spec.straggler.query or "", QUERY_TIMEOUT_SECONDS, QUERY_MAXIMUM_BYTES)
            ratios = ratios_of(samples(data), spec.parallelism.pipelines)
        except NoAnswer as error:
            metrics.SOURCE_ERRORS.labels(source="query").inc()
            known.problem = f"spec.straggler.query: {error}"
            return
        except ValueError as error:
            metrics.SOURCE_ERRORS.labels(source="query").inc()
            known.problem = f"spec.straggler.query: {error}"
            return
        self._queries[key] = Told(ratios, time.monotonic())


def slowdown_of(text: str) -> float | None:
    """Return the slowdown that an annotation names, None if it names none."""
    if not _RATIO.fullmatch(text):
        return None
    ratio = float(text)
    return ratio if 1.0 <= ratio <= MOST_SLOWDOWN else None


def ratios_of(found: list[Sample], pipelines: int) -> Ratios:
    """Return the slowdowns by pipeline that a query's answer tells of.

    Raises:
        ValueError: it tells of no pipeline, or of an impossible slowdown; the text says what to do.
    """
    ratios: Ratios = {}
    for labels, value in found:
        text = labels.get("pipeline", "")
        if not (text.isascii() and text.isdigit() and len(text) < 7):
            raise ValueError("a sample has no label pipeline with a number; aggregate with `by (pipeline)`")
        if not (math.isfinite(value) and 0 < value <= MOST_SLOWDOWN):
            raise ValueError(
                f"pipeline {text} has the value {value:g}; a slowdown lies between 1 and {MOST_SLOWDOWN:g} (1.2 is a "
                "fifth slower)"
            )
        index = int(text)
        if index < pipelines:
            ratios[index] = max(ratios.get(index, 0.0), value)
    return ratios


def pipelines_of(pod: dict[str, Any], jobs: Mapping[JobKey, PerseusJobSpec]) -> tuple[JobKey, set[int]]:
    """Return the job that a training pod belongs to, and the pipelines of its ranks; none if it is none of ours."""
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    key = (str(metadata.get("namespace", "")), str(labels.get(names.LABEL_JOB, "")))
    index, spec = str(labels.get(names.LABEL_COMPLETION_INDEX, "")), jobs.get(key)
    if spec is None or not (index.isascii() and index.isdigit() and len(index) < 7):
        return key, set()
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return key, set()
    shape, gpus = spec.parallelism.shape, gpus_of(pod)
    first = int(index) * gpus
    return key, {shape.place(rank)[0] for rank in range(first, min(first + gpus, shape.ranks))}
