"""Watching a run: samples of the agents' and the operator's metrics, several times a second, kept in memory.

The recorder reads the same ``/metrics`` pages that Prometheus scrapes, only more often, so that the report can say when
something happened to a fraction of a second. It decides nothing.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from testbed.errors import TestbedError

Rank = tuple[int, int]  # (pipeline, stage)


@dataclass
class RankSample:
    """What one rank's series said at one moment (joules, watts, hertz)."""

    gpu: str = ""
    energy_joules: float = 0.0
    iterations: float = 0.0
    power_watts: float = 0.0
    clock_requested_hertz: float = 0.0
    clock_held_hertz: float = 0.0
    generation_accepted: int = 0
    generation_active: int = 0
    clock_changes: float = 0.0


@dataclass
class Sample:
    """Everything read at one wall-clock time (seconds since the epoch)."""

    time_seconds: float
    ranks: dict[Rank, RankSample] = field(default_factory=dict)
    pipeline_seconds: dict[int, float] = field(default_factory=dict)
    pipeline_iteration: dict[int, int] = field(default_factory=dict)
    iteration_begin_seconds: dict[int, float] = field(default_factory=dict)
    locks: int = 0
    operator_generation: int = 0


_RANK_SERIES = {
    "perseus_gpu_energy_joules_total": "energy_joules",
    "perseus_iterations_total": "iterations",
    "perseus_gpu_power_watts": "power_watts",
    "perseus_gpu_clock_requested_hertz": "clock_requested_hertz",
    "perseus_gpu_clock_held_hertz": "clock_held_hertz",
    "perseus_plan_generation_accepted": "generation_accepted",
    "perseus_plan_generation_active": "generation_active",
    "perseus_clock_changes_total": "clock_changes",
}


def read_sample(agent_urls: Iterable[str], operator_url: str | None, namespace: str, job: str) -> Sample:
    """Read all pages once.

    Args:
        agent_urls: metrics pages of the agents.
        operator_url: metrics page of the operator, None to leave it out.
        namespace: namespace of the PerseusJob.
        job: its name.
    """
    sample = Sample(time_seconds=time.time())
    for url in agent_urls:
        _read_agent(fetch_page(url), namespace, job, sample)
    if operator_url is not None:
        for family in text_string_to_metric_families(fetch_page(operator_url)):
            for series in family.samples:
                if series.name == "perseus_job_plan_generation" and series.labels.get("job") == job:
                    sample.operator_generation = int(series.value)
    return sample


def _read_agent(page: str, namespace: str, job: str, sample: Sample) -> None:
    for family in text_string_to_metric_families(page):
        for series in family.samples:
            if series.name == "perseus_locks":
                sample.locks += int(series.value)
            if series.labels.get("job") != job or series.labels.get("namespace") != namespace:
                continue
            pipeline = int(series.labels.get("pipeline", -1))
            if series.name == "perseus_pipeline_seconds":
                sample.pipeline_seconds[pipeline] = series.value
            elif series.name == "perseus_pipeline_iteration":
                sample.pipeline_iteration[pipeline] = int(series.value)
            elif series.name == "perseus_pipeline_iteration_begin_timestamp_seconds":
                sample.iteration_begin_seconds[pipeline] = series.value
            elif series.name in _RANK_SERIES:
                rank = (pipeline, int(series.labels["stage"]))
                entry = sample.ranks.setdefault(rank, RankSample())
                entry.gpu = series.labels["gpu"]
                setattr(entry, _RANK_SERIES[series.name], series.value)


def fetch_page(url: str) -> str:
    """Return a page of one of our own pods or servers, 8 MiB of it at most."""
    with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - addresses of our own pods
        body: bytes = response.read(8 * 1024 * 1024)
    return body.decode()


class Recorder:
    """Takes a sample every `period_seconds` in a thread, until closed."""

    def __init__(self, read: Callable[[], Sample], period_seconds: float = 0.2) -> None:
        self._read = read
        self._period_seconds = period_seconds
        self._samples: list[Sample] = []
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        """Start recording."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop recording."""
        self._stopped.set()
        self._thread.join()

    @property
    def samples(self) -> list[Sample]:
        """The samples so far, in order of time."""
        with self._changed:
            return list(self._samples)

    def wait_for(self, what: str, condition: Callable[[Sample], bool], timeout_seconds: float) -> Sample:
        """Return the first sample from now on that meets a condition.

        Raises:
            TimeoutError: none did in time; the text names `what`.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            seen = len(self._samples)
            while True:
                for sample in self._samples[seen:]:
                    if condition(sample):
                        return sample
                seen = len(self._samples)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError(f"{what}: not seen within {timeout_seconds:.0f} s")
                self._changed.wait(remaining)

    def _run(self) -> None:
        while not self._stopped.wait(self._period_seconds):
            try:
                sample = self._read()
            except (OSError, TestbedError, ValueError):
                continue  # a pod that restarts has no page for a moment; the next sample tells
            with self._changed:
                self._samples.append(sample)
                self._changed.notify_all()
