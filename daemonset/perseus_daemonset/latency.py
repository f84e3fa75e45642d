"""The one figure that is observed where it happens: from a boundary's receipt to the end of its NVML call."""

from __future__ import annotations

from perseus_api.metrics import AGENT_METRICS
from prometheus_client import CollectorRegistry, Histogram

METRICS = CollectorRegistry()
_NAME = "perseus_boundary_to_call_seconds"
CALL_SECONDS = Histogram(
    _NAME,
    AGENT_METRICS[_NAME],
    buckets=(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
    registry=METRICS,
)
