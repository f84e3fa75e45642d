"""The operator's own metrics; names and help texts come from `perseus_api.metrics`."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

from perseus_api.metrics import OPERATOR_METRICS
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

METRICS = CollectorRegistry()


def _gauge(name: str, *labels: str) -> Gauge:
    return Gauge(name, OPERATOR_METRICS[name], labels, registry=METRICS)


def _counter(name: str, *labels: str) -> Counter:
    return Counter(name.removesuffix("_total"), OPERATOR_METRICS[name], labels, registry=METRICS)


PLAN_GENERATION = _gauge("perseus_job_plan_generation", "namespace", "job")
PLANNED_SECONDS = _gauge("perseus_job_planned_iteration_seconds", "namespace", "job", "pipeline")
SLOWDOWN_RATIO = _gauge("perseus_job_straggler_slowdown_ratio", "namespace", "job")
PREDICTED_SAVINGS = _gauge("perseus_job_predicted_savings_ratio", "namespace", "job")
RECONCILE_SECONDS = Histogram(
    "perseus_operator_reconcile_seconds", OPERATOR_METRICS["perseus_operator_reconcile_seconds"], registry=METRICS
)
RECONCILES = _counter("perseus_operator_reconciles_total", "outcome")
API_WRITES = _counter("perseus_operator_api_writes_total", "kind", "verb")
REPLANS = _counter("perseus_operator_replans_total", "reason")
STRAGGLER_ROUNDS = _counter("perseus_operator_straggler_rounds_total", "outcome")
VISIT_ERRORS = _counter("perseus_operator_visit_errors_total", "reason")
API_REQUEST_SECONDS = Histogram(
    "perseus_operator_api_request_seconds",
    OPERATOR_METRICS["perseus_operator_api_request_seconds"],
    ("verb",),
    registry=METRICS,
)
API_REFUSALS = _counter("perseus_operator_api_refusals_total", "code")
QUEUE_DEPTH = _gauge("perseus_operator_queue_depth")
QUEUE_OVERDUE_SECONDS = _gauge("perseus_operator_queue_overdue_seconds")
MISSED_JOBS = _gauge("perseus_operator_missed_jobs")
BUILD_INFO = _gauge("perseus_operator_build_info", "version")


def tell_version() -> None:
    """Export the version that runs."""
    try:
        running = version("perseus-operator")
    except PackageNotFoundError:
        running = "unknown"
    BUILD_INFO.labels(version=running).set(1)


def forget_job(namespace: str, job: str, pipelines: int) -> None:
    """Take a deleted job's series away."""
    for gauge in (PLAN_GENERATION, SLOWDOWN_RATIO, PREDICTED_SAVINGS):
        _remove(gauge, namespace, job)
    for pipeline in range(pipelines):
        _remove(PLANNED_SECONDS, namespace, job, str(pipeline))


def _remove(gauge: Gauge, *labels: str) -> None:
    with contextlib.suppress(KeyError):
        gauge.remove(*labels)
