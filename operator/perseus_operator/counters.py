"""What Prometheus knows of the agents' counters since the last look, read so that nothing is lost and nothing guessed.

Not ``increase``: it extrapolates to the window's ends, and misses what a series counts before its first sample. Two
readings of each series over the time since the last look instead: its last value, which is there for a pod that has
gone meanwhile too, and its greatest, which tells of an agent that started anew in between. One query for all jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

JobKey = tuple[str, str]
Sample = tuple[dict[str, str], float]


class Quantity(StrEnum):
    """What is accounted; each is the sum of counters."""

    ENERGY = "energy"
    MEASURED = "measured"  # baseline joules, by how they were got
    PREDICTED = "predicted"
    ITERATIONS = "iterations"
    SECONDS = "seconds"
    BASELINE_SECONDS = "baseline_seconds"


# Training iterations and their time are those of one rank: all ranks of a job go through the same ones together.
_FIRST_RANK = 'pipeline="0", stage="0", tensor_rank="0"'
_SELECTORS = {
    Quantity.ENERGY: "perseus_gpu_energy_joules_total",
    Quantity.MEASURED: 'perseus_gpu_baseline_joules_total{source="measured"}',
    Quantity.PREDICTED: 'perseus_gpu_baseline_joules_total{source="predicted"}',
    Quantity.ITERATIONS: f"perseus_iterations_total{{{_FIRST_RANK}}}",
    Quantity.SECONDS: f"perseus_iterations_seconds_total{{{_FIRST_RANK}}}",
    Quantity.BASELINE_SECONDS: f"perseus_baseline_seconds_total{{{_FIRST_RANK}}}",
}
_SERIES = "namespace, job, pod, gpu"
_LAST, _GREATEST = "last", "greatest"
# A sample may be stored a moment after its own time.
OVERLAP_SECONDS = 2.0


@dataclass(frozen=True)
class SeriesKey:
    """One counter of one pod."""

    pod: str
    gpu: str
    quantity: Quantity


@dataclass
class Reading:
    """A counter over a window: its last value, and its greatest."""

    last: float = 0.0
    greatest: float = 0.0


@dataclass
class JobReadings:
    """The counters of one job."""

    series: dict[SeriesKey, Reading] = field(default_factory=dict)


def question(window_seconds: float) -> str:
    """Return the query over the last `window_seconds`."""
    window = f"{max(1, round(1000 * (window_seconds + OVERLAP_SECONDS)))}ms"
    parts = []
    for quantity, selector in _SELECTORS.items():
        for reading, function in ((_LAST, "last_over_time"), (_GREATEST, "max_over_time")):
            # A job may count seconds by both sources; summed they are one counter still.
            vector = f"sum by ({_SERIES}) ({function}({selector}[{window}]))"
            named = f'label_replace({vector}, "quantity", "{quantity.value}", "", "")'
            parts.append(f'label_replace({named}, "reading", "{reading}", "", "")')
    return " or ".join(parts)


def readings(samples: Iterable[Sample]) -> dict[JobKey, JobReadings]:
    """Return the counters by job; samples that are none of our question's are left out."""
    quantities = {quantity.value: quantity for quantity in Quantity}
    found: dict[JobKey, JobReadings] = {}
    for labels, value in samples:
        quantity = quantities.get(labels.get("quantity", ""))
        if quantity is None or not 0 <= value < 1e18:
            continue
        job = found.setdefault((labels.get("namespace", ""), labels.get("job", "")), JobReadings())
        key = SeriesKey(labels.get("pod", ""), labels.get("gpu", ""), quantity)
        reading = job.series.setdefault(key, Reading())
        if labels.get("reading") == _LAST:
            reading.last = value
        elif labels.get("reading") == _GREATEST:
            reading.greatest = value
    return found
