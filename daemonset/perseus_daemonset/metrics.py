"""What Prometheus sees of the agent: one collector over the leases' own state, so that nothing is counted twice.

No call to the hardware is made here: the pages show what the GPUs' caretakers read last. Labels are those of the ranks
on this node, whose number is bounded by its GPUs, and reasons from short lists; nothing that a trainer says is a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from perseus_daemonset.accounting import MEASURED, PREDICTED, RankAccount
from perseus_daemonset.caretaker import Caretaker
from perseus_daemonset.families import Families, Labels
from perseus_daemonset.latency import CallLatency
from perseus_daemonset.lease import Lease, RankKey
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.registry import Registry
from perseus_daemonset.state import state_of

METRICS = CollectorRegistry()
_MEGA = 1e6


class AgentCollector(Collector):
    """Everything in `AGENT_METRICS`."""

    def __init__(self, registry: Registry, plans: PlanStore) -> None:
        """Collect from the leases and the plans."""
        self._registry = registry
        self._plans = plans

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        families = Families()
        for key, lease in self._registry.ranks():
            _collect_rank(families, key, lease)
        for key, account in self._registry.closed_books():
            _collect_books(families, _rank_labels(key), account)
        caretakers = self._registry.caretakers()
        families.gauge("perseus_leases", {}, len(self._registry.leases()))
        locked = sum(each.controller.requested_megahertz is not None for each in caretakers)
        families.gauge("perseus_locks", {}, locked)
        for reason, count in sorted(self._registry.refusals.counts.items()):
            families.counter("perseus_lease_refusals_total", {"reason": reason}, count)
        for pod, reason in self._registry.refusals.fresh():
            labels = {"namespace": pod.namespace, "job": pod.job, "pod": pod.name, "reason": reason}
            families.gauge("perseus_pod_refused", labels, 1)
        for caretaker in caretakers:
            controller = caretaker.controller
            for code, count in sorted(controller.errors.items()):
                families.counter("perseus_nvml_errors_total", {"gpu": controller.gpu.uuid, "error": code}, count)
        for (namespace, job, reason), count in sorted(self._plans.rejected.items()):
            labels = {"namespace": namespace, "job": job, "reason": reason}
            families.counter("perseus_plans_rejected_total", labels, count)
        latencies = CallLatency.histogram(caretaker.controller.latency for caretaker in caretakers)
        families.histogram("perseus_boundary_to_call_seconds", *latencies)
        families.gauge("perseus_agent_build_info", {"version": _version()}, 1)
        yield from families.all()


def _collect_rank(families: Families, key: RankKey, lease: Lease) -> None:
    account, follower = lease.account, lease.follower
    pipeline = {"namespace": key.namespace, "job": key.job, "pipeline": str(key.pipeline), "pod": key.pod}
    rank = _rank_labels(key)
    if key.stage == 0 and key.tensor_rank == 0:
        families.gauge("perseus_pipeline_seconds", pipeline, account.pipeline_seconds)
        iteration = account.iteration if account.iteration >= 0 else None
        families.gauge("perseus_pipeline_iteration", pipeline, iteration)
        families.gauge("perseus_pipeline_iteration_begin_timestamp_seconds", pipeline, account.begin_wall_seconds)
    _collect_books(families, rank, account)
    families.gauge("perseus_iteration_seconds", rank, account.iteration_seconds)
    families.gauge("perseus_gpu_baseline_iteration_joules", rank, account.unlocked_iteration_joules)
    families.gauge("perseus_gpu_baseline_iteration_seconds", rank, account.unlocked_iteration_seconds)
    for instruction, times in sorted(account.instructions.times.items()):
        labels = {**rank, "instruction": instruction.value}
        families.summary("perseus_instruction_seconds", labels, times.count, times.seconds)
        if times.expected_seconds:
            families.counter("perseus_instruction_compared_seconds_total", labels, times.compared_seconds)
            families.counter("perseus_instruction_expected_seconds_total", labels, times.expected_seconds)
    families.gauge("perseus_plan_generation_accepted", rank, follower.accepted_generation)
    families.gauge("perseus_plan_generation_active", rank, follower.active_generation)
    families.counter("perseus_plans_late_total", rank, follower.late)
    families.counter("perseus_mismatches_total", rank, follower.mismatches)
    families.counter("perseus_clock_intermissions_total", rank, follower.intermissions)
    families.counter("perseus_messages_throttled_total", rank, lease.rate.throttled)
    state, reason = state_of(lease)
    families.gauge("perseus_rank_state", {**rank, "state": state.value, "reason": reason}, 1)
    _collect_gpu(families, rank, lease.caretaker)


def _rank_labels(key: RankKey) -> Labels:
    return {
        "namespace": key.namespace, "job": key.job, "pipeline": str(key.pipeline), "stage": str(key.stage),
        "tensor_rank": str(key.tensor_rank), "pod": key.pod, "gpu": key.gpu,
    }  # fmt: skip


def _collect_books(families: Families, rank: Labels, account: RankAccount) -> None:
    families.counter("perseus_iterations_total", rank, account.iterations)
    families.counter("perseus_iterations_seconds_total", rank, account.seconds)
    families.counter("perseus_gpu_energy_joules_total", rank, account.energy_joules)
    # From zero on: a counter that is born with its first value would be missing it in every rate.
    unused = dict.fromkeys((MEASURED, PREDICTED), 0.0)
    for source, joules in sorted((unused | account.baseline_joules).items()):
        families.counter("perseus_gpu_baseline_joules_total", {**rank, "source": source}, joules)
    for source, seconds in sorted((unused | account.baseline_seconds).items()):
        families.counter("perseus_baseline_seconds_total", {**rank, "source": source}, seconds)


def _collect_gpu(families: Families, rank: Labels, caretaker: Caretaker) -> None:
    controller, held, reading = caretaker.controller, caretaker.held, caretaker.reading
    families.gauge("perseus_gpu_clock_requested_hertz", rank, (controller.requested_megahertz or 0) * _MEGA)
    families.counter("perseus_clock_changes_total", rank, controller.changes)
    families.counter("perseus_clock_changes_held_back_total", rank, controller.held_back)
    families.counter("perseus_clock_interferences_total", rank, controller.interferences)
    families.counter("perseus_clock_watched_seconds_total", rank, held.watched_seconds)
    for reason, seconds in sorted(held.not_held_seconds.copy().items()):
        families.counter("perseus_clock_not_held_seconds_total", {**rank, "reason": reason}, seconds)
    for cause, seconds in sorted(caretaker.throttled.items()):
        families.counter("perseus_gpu_throttle_seconds_total", {**rank, "cause": cause}, seconds)
    if reading is None:
        return
    families.gauge("perseus_gpu_clock_held_hertz", rank, reading.clock_megahertz * _MEGA)
    families.gauge("perseus_gpu_power_watts", rank, reading.power_watts)
    families.gauge("perseus_gpu_temperature_celsius", rank, reading.temperature_celsius)
    for reason in reading.event_reasons:
        families.gauge("perseus_gpu_clock_event_active", {**rank, "reason": reason}, 1)


def _version() -> str:
    try:
        return version("perseus-operator")
    except PackageNotFoundError:
        return "unknown"
