"""What Prometheus sees of the agent: one collector over the leases' own state, so that nothing is counted twice.

Reading the hardware for power, clocks and temperature happens here, at the scrape, and never on the way of a boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from perseus_api.metrics import AGENT_METRICS, PIPELINE_LABELS, RANK_LABELS
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.instructions import InstructionBooks

if TYPE_CHECKING:
    from perseus_daemonset.lease import Lease, RankKey
    from perseus_daemonset.plans import PlanStore
    from perseus_daemonset.registry import Registry

METRICS = CollectorRegistry()
_CALL = "perseus_boundary_to_call_seconds"
CALL_SECONDS = Histogram(
    _CALL,
    AGENT_METRICS[_CALL],
    buckets=(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
    registry=METRICS,
)
_MEGA = 1e6


class AgentCollector(Collector):
    """Everything in `AGENT_METRICS` but the histogram."""

    def __init__(self, registry: Registry, plans: PlanStore) -> None:
        """Collect from the leases and the plans."""
        self._registry = registry
        self._plans = plans

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        families: dict[str, Metric] = {}
        for key, lease in self._registry.ranks():
            _collect_rank(families, key, lease)
        leases = self._registry.leases()
        controllers = self._registry.controllers()
        _gauge(families, "perseus_leases", (), (), len(leases))
        locked = sum(controller.requested_megahertz is not None for controller in controllers)
        _gauge(families, "perseus_locks", (), (), locked)
        for reason, count in sorted(self._registry.refusals.items()):
            _counter(families, "perseus_lease_refusals_total", ("reason",), (reason,), count)
        for controller in controllers:
            for code, count in sorted(controller.errors.items()):
                _counter(families, "perseus_nvml_errors_total", ("gpu", "error"), (controller.gpu.uuid, code), count)
        for labels, count in sorted(self._plans.rejected.items()):
            _counter(families, "perseus_plans_rejected_total", ("namespace", "job", "reason"), labels, count)
        _gauge(families, "perseus_agent_build_info", ("version",), (_version(),), 1)
        yield from families.values()


def _collect_rank(families: dict[str, Metric], key: RankKey, lease: Lease) -> None:
    account, follower, controller = lease.account, lease.follower, lease.controller
    rank = (key.namespace, key.job, str(key.pipeline), str(key.stage), str(key.tensor_rank), key.pod, key.gpu)

    def gauge(name: str, value: float | None) -> None:
        if value is not None:
            _gauge(families, name, RANK_LABELS, rank, value)

    def counter(name: str, value: float) -> None:
        _counter(families, name, RANK_LABELS, rank, value)

    if key.stage == 0 and key.tensor_rank == 0:
        labels = (key.namespace, key.job, str(key.pipeline), key.pod)
        for name, value in (
            ("perseus_pipeline_seconds", account.pipeline_seconds),
            ("perseus_pipeline_iteration", account.iteration if account.iteration >= 0 else None),
            ("perseus_pipeline_iteration_begin_timestamp_seconds", account.begin_wall_seconds),
        ):
            if value is not None:
                _gauge(families, name, PIPELINE_LABELS, labels, value)
    counter("perseus_iterations_total", account.iterations)
    counter("perseus_gpu_energy_joules_total", account.energy_joules)
    for source, joules in sorted(account.baseline_joules.items()):
        _counter(families, "perseus_gpu_baseline_joules_total", (*RANK_LABELS, "source"), (*rank, source), joules)
    _collect_instructions(families, rank, account.instructions)
    gauge("perseus_iteration_seconds", account.iteration_seconds)
    gauge("perseus_gpu_baseline_iteration_joules", account.unlocked_iteration_joules)
    gauge("perseus_gpu_baseline_iteration_seconds", account.unlocked_iteration_seconds)
    gauge("perseus_gpu_clock_requested_hertz", (controller.requested_megahertz or 0) * _MEGA)
    gauge("perseus_plan_generation_accepted", follower.accepted_generation)
    gauge("perseus_plan_generation_active", follower.active_generation)
    counter("perseus_clock_changes_total", controller.changes)
    counter("perseus_plans_late_total", follower.late)
    counter("perseus_mismatches_total", follower.mismatches)
    try:
        reading = controller.gpu.read()
    except HardwareError as error:
        controller.errors[error.code] = controller.errors.get(error.code, 0) + 1
        return
    gauge("perseus_gpu_clock_held_hertz", reading.clock_megahertz * _MEGA)
    gauge("perseus_gpu_power_watts", reading.power_watts)
    gauge("perseus_gpu_temperature_celsius", reading.temperature_celsius)
    for reason in reading.event_reasons:
        _gauge(families, "perseus_gpu_clock_event_active", (*RANK_LABELS, "reason"), (*rank, reason), 1)


def _collect_instructions(families: dict[str, Metric], rank: tuple[str, ...], books: InstructionBooks) -> None:
    labels = (*RANK_LABELS, "instruction")
    for instruction, times in sorted(books.times.items()):
        values = (*rank, instruction.value)
        name = "perseus_instruction_seconds"
        family = families.get(name)
        if not isinstance(family, SummaryMetricFamily):
            family = families[name] = SummaryMetricFamily(name, AGENT_METRICS[name], labels=labels)
        family.add_metric(values, times.count, times.seconds)
        if times.expected_seconds:
            _counter(families, "perseus_instruction_compared_seconds_total", labels, values, times.compared_seconds)
            _counter(families, "perseus_instruction_expected_seconds_total", labels, values, times.expected_seconds)


def _gauge(
    families: dict[str, Metric], name: str, labels: tuple[str, ...], values: tuple[str, ...], value: float
) -> None:
    family = families.get(name)
    if not isinstance(family, GaugeMetricFamily):
        family = families[name] = GaugeMetricFamily(name, AGENT_METRICS[name], labels=labels)
    family.add_metric(values, value)


def _counter(
    families: dict[str, Metric], name: str, labels: tuple[str, ...], values: tuple[str, ...], value: float
) -> None:
    family = families.get(name)
    if not isinstance(family, CounterMetricFamily):
        family = families[name] = CounterMetricFamily(name, AGENT_METRICS[name], labels=labels)
    family.add_metric(values, value)


def _version() -> str:
    try:
        return version("perseus-operator")
    except PackageNotFoundError:
        return "unknown"
