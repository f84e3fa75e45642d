"""A small builder of Prometheus metric families: each name once, with its help text from the contracts."""

from __future__ import annotations

from collections.abc import Iterator

from perseus_api.metrics import AGENT_METRICS
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

Labels = dict[str, str]


class Families:
    """Families under construction."""

    def __init__(self) -> None:
        """Begin empty."""
        self._gauges: dict[str, GaugeMetricFamily] = {}
        self._counters: dict[str, CounterMetricFamily] = {}
        self._summaries: dict[str, SummaryMetricFamily] = {}
        self._histograms: dict[str, HistogramMetricFamily] = {}

    def gauge(self, name: str, labels: Labels, value: float | None) -> None:
        """Add a sample of a gauge; None is no sample."""
        if value is not None:
            family = self._gauges.setdefault(name, GaugeMetricFamily(name, AGENT_METRICS[name], labels=list(labels)))
            family.add_metric(list(labels.values()), value)

    def counter(self, name: str, labels: Labels, value: float) -> None:
        """Add a sample of a counter."""
        family = self._counters.setdefault(name, CounterMetricFamily(name, AGENT_METRICS[name], labels=list(labels)))
        family.add_metric(list(labels.values()), value)

    def summary(self, name: str, labels: Labels, count: int, total: float) -> None:
        """Add a count and a sum."""
        family = self._summaries.setdefault(name, SummaryMetricFamily(name, AGENT_METRICS[name], labels=list(labels)))
        family.add_metric(list(labels.values()), count, total)

    def histogram(self, name: str, buckets: list[tuple[str, float]], total: float) -> None:
        """Add a histogram without labels: counts up to each bound, and the sum."""
        self._histograms[name] = HistogramMetricFamily(name, AGENT_METRICS[name], buckets=buckets, sum_value=total)

    def all(self) -> Iterator[Metric]:
        """Return every family."""
        yield from self._gauges.values()
        yield from self._counters.values()
        yield from self._summaries.values()
        yield from self._histograms.values()
