"""The operator's own metrics; names and help texts come from `perseus_api.metrics`."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

from perseus_api.metrics import OPERATOR_METRICS
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from perseus_operator.ledger import Totals

METRICS = CollectorRegistry()


def _gauge(name: str, *labels: str) -> Gauge:
    return Gauge(name, OPERATOR_METRICS[name], labels, registry=METRICS)


def _counter(name: str, *labels: str) -> Counter:
    return Counter(name.removesuffix("_total"), OPERATOR_METRICS[name], labels, registry=METRICS)


PLAN_GENERATION = _gauge("perseus_job_plan_generation", "namespace", "job")
PLANNED_SECONDS = _gauge("perseus_job_planned_iteration_seconds", "namespace", "job", "pipeline")
SLOWDOWN_RATIO = _gauge("perseus_job_straggler_slowdown_ratio", "namespace", "job")
PREDICTED_SAVINGS = _gauge("perseus_job_predicted_savings_ratio", "namespace", "job")
ENERGY_JOULES = _gauge("perseus_job_energy_joules", "namespace", "job")
BASELINE_JOULES = _gauge("perseus_job_baseline_joules", "namespace", "job", "source")
SAVED_JOULES = _gauge("perseus_job_saved_joules", "namespace", "job", "cause")
ITERATIONS = _gauge("perseus_job_iterations", "namespace", "job")
SLOWDOWN = _gauge("perseus_job_slowdown_ratio", "namespace", "job")
RECONCILE_SECONDS = Histogram(
    "perseus_operator_reconcile_seconds", OPERATOR_METRICS["perseus_operator_reconcile_seconds"], registry=METRICS
)
RECONCILES = _counter("perseus_operator_reconciles_total", "outcome")
API_WRITES = _counter("perseus_operator_api_writes_total", "kind", "verb")
CORRECTION_RATIO = _gauge("perseus_job_profile_correction_ratio", "namespace", "job")
CAUSE_RATIO = _gauge("perseus_job_straggler_cause_ratio", "namespace", "job", "pipeline", "cause", "pod", "node", "gpu")
ROUND_SECONDS = Histogram(
    "perseus_operator_straggler_round_seconds",
    OPERATOR_METRICS["perseus_operator_straggler_round_seconds"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    registry=METRICS,
)
CONFIRMATION_SECONDS = Histogram(
    "perseus_operator_plan_confirmation_seconds",
    OPERATOR_METRICS["perseus_operator_plan_confirmation_seconds"],
    buckets=(0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 30.0, 60.0, 120.0),
    registry=METRICS,
)
SOURCE_ERRORS = _counter("perseus_operator_source_errors_total", "source")
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


_told_causes: dict[tuple[str, str], set[tuple[str, ...]]] = {}


def tell_causes(namespace: str, job: str, found: dict[tuple[str, ...], float]) -> None:
    """Export a job's stragglers: ratios by pipeline, cause, pod, node and gpu; take others' series away."""
    for labels in _told_causes.pop((namespace, job), set()) - found.keys():
        _remove(CAUSE_RATIO, namespace, job, *labels)
    for labels, ratio in found.items():
        CAUSE_RATIO.labels(namespace, job, *labels).set(ratio)
    if found:
        _told_causes[(namespace, job)] = set(found)


def forget_job(namespace: str, job: str, pipelines: int) -> None:
    """Take a deleted job's series away."""
    for gauge in (PLAN_GENERATION, SLOWDOWN_RATIO, PREDICTED_SAVINGS, CORRECTION_RATIO):
        _remove(gauge, namespace, job)
    tell_causes(namespace, job, {})
    for pipeline in range(pipelines):
        _remove(PLANNED_SECONDS, namespace, job, str(pipeline))


def tell_totals(namespace: str, job: str, totals: Totals) -> None:
    """Export a job's books, as they stand."""
    ENERGY_JOULES.labels(namespace, job).set(totals.energy_joules)
    ITERATIONS.labels(namespace, job).set(totals.iterations)
    BASELINE_JOULES.labels(namespace, job, "measured").set(totals.measured_joules)
    BASELINE_JOULES.labels(namespace, job, "predicted").set(totals.predicted_joules)
    SAVED_JOULES.labels(namespace, job, "intrinsic").set(totals.intrinsic_joules)
    SAVED_JOULES.labels(namespace, job, "straggler").set(totals.straggler_joules)
    if totals.slowdown_ratio is not None:
        SLOWDOWN.labels(namespace, job).set(totals.slowdown_ratio)


def forget_totals(namespace: str, job: str) -> None:
    """Take the books of a job that is gone away."""
    for gauge in (ENERGY_JOULES, ITERATIONS, SLOWDOWN):
        _remove(gauge, namespace, job)
    for gauge, values in ((BASELINE_JOULES, ("measured", "predicted")), (SAVED_JOULES, ("intrinsic", "straggler"))):
        for value in values:
            _remove(gauge, namespace, job, value)


def _remove(gauge: Gauge, *labels: str) -> None:
    with contextlib.suppress(KeyError):
        gauge.remove(*labels)
