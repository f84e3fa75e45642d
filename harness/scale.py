"""A thousand jobs at once on a fleet of kwok's: how soon each has its plan, what that costs, and what a restart writes.

The frontiers are there already, one ConfigMap for each job as a cache would leave it. Nine jobs in ten are one pod of
eight GPUs (4 stages x 2 tensor-parallel ranks); one in ten has two pipelines of such a pod, so that it can have a
straggler.
"""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseus_api import names

from harness import rights
from harness.audit import AuditLog, is_write
from harness.controlplane import ControlPlane, free_port, running
from harness.fleet import fleet
from harness.objects import core_path, frontier_data, frontier_of, job_path, perseus_job, profile_config_map
from harness.operator import OperatorProcess
from harness.prometheus_server import PrometheusServer
from harness.training import JobKey, Training
from testbed.execution import say, wait_until

USER = rights.user(rights.OPERATOR)
MODELS, MICROBATCHES, SCRAPE_SECONDS = 10, 8, 1.0
STAGES, TENSOR_PARALLEL = 4, 2
GPUS_OF_A_POD = STAGES * TENSOR_PARALLEL
CREATORS = 4
SLOWDOWN = 1.25
_PATIENCE_SECONDS = 240.0
_LOOK_SECONDS = 5.0  # whoever lists a thousand Jobs takes the API server's time


@dataclass(frozen=True)
class Size:
    """How much of it.

    Attributes:
        nodes: of eight GPUs.
        jobs: created at once.
        stragglers: how many of them have two pipelines, one of which becomes slow.
        restart_seconds: for how long writes are counted after a restart: longer than the steady visits' period.
    """

    nodes: int = 1250
    jobs: int = 1000
    stragglers: int = 100
    restart_seconds: float = 75.0


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Run it, and return the figures.

    Raises:
        TestbedError: something did not come to an end.
    """
    controllers = ["job-controller", "garbage-collector-controller"]
    with (
        running(folder, controllers=controllers, scheduler=True) as plane,
        Training(plane) as training,
        PrometheusServer(folder / "prometheus", free_port(), training.port, SCRAPE_SECONDS, rules=False) as prometheus,
        fleet(plane, size.nodes),
    ):
        say(f"{size.nodes} nodes are ready")
        log = folder / "operator.log"
        with OperatorProcess(
            plane.operator_kubeconfig, log, free_port(), PERSEUS_PROMETHEUS_URL=prometheus.url
        ) as operator:
            return _Run(plane, training, operator, size).figures()


class _Run:
    def __init__(self, plane: ControlPlane, training: Training, operator: OperatorProcess, size: Size) -> None:
        self._plane, self._training, self._operator, self._size = plane, training, operator, size
        self._keys: list[JobKey] = [(f"team-{index % MODELS}", f"job-{index:04d}") for index in range(size.jobs)]
        self._training_keys: set[JobKey] = set()
        self._done = threading.Event()

    def figures(self) -> dict[str, Any]:
        wait_until("the operator is ready", lambda: self._operator.is_well("readyz"), timeout_seconds=120)
        say("the operator is ready")
        self._prepare()
        log = AuditLog(self._plane.audit_log)
        pods = threading.Thread(target=self._begin_training, daemon=True)
        pods.start()
        settle = self._create()
        say(f"{self._size.jobs} plans after {settle:.1f} s")
        wait_until("every job trains", lambda: len(self._training_keys) == len(self._keys),
                   timeout_seconds=_PATIENCE_SECONDS, period_seconds=1.0)  # fmt: skip
        self._done.set()
        wait_until("every job runs under its plan", self._all_ready, timeout_seconds=_PATIENCE_SECONDS,
                   period_seconds=2.0)  # fmt: skip
        self._quiet()
        by_job = self._writes_by_job(log)
        cpu, megabytes = self._operator.cpu_seconds, self._operator.peak_megabytes
        say(f"{sum(by_job.values()) / self._size.jobs:.1f} writes a job, {megabytes:.0f} MB, {cpu:.0f} CPU seconds")
        after_restart = self._restart()
        say(f"{after_restart} writes in {self._size.restart_seconds:.0f} s after a restart")
        straggling, begun = self._straggle()
        say(f"{self._size.stragglers} plans for stragglers after {straggling:.1f} s")
        return {
            "nodes": self._size.nodes,
            "jobs": self._size.jobs,
            "settle_seconds": round(settle, 1),
            "writes_per_job": round(sum(by_job.values()) / self._size.jobs, 2),
            "most_writes_of_a_job": max(by_job.values()),
            "writes_after_restart": after_restart,
            "restart_watched_seconds": self._size.restart_seconds,
            "stragglers": self._size.stragglers,
            "straggler_plans_seconds": round(straggling, 1),
            "first_straggler_plan_seconds": round(begun, 1),
            "scrape_interval_seconds": SCRAPE_SECONDS,
            "operator_megabytes": round(max(megabytes, self._operator.peak_megabytes)),
            "operator_cpu_seconds": round(cpu, 1),
        }

    def _prepare(self) -> None:
        client = self._plane.client
        for model in range(MODELS):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"team-{model}"}}
            client.post("/api/v1/namespaces", namespace)
            profile = profile_config_map(seconds=_seconds(model), stages=STAGES)
            client.post(core_path("configmaps", f"team-{model}"), profile)

        def frontier(key: JobKey) -> None:
            metadata = {"name": names.frontier_config_map_name(key[1])}
            data = frontier_data(STAGES, MICROBATCHES, _seconds(_model(key)), TENSOR_PARALLEL)
            document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": data}
            client.post(core_path("configmaps", key[0]), document)

        with ThreadPoolExecutor(CREATORS) as pool:
            list(pool.map(frontier, self._keys))

    def _create(self) -> float:
        client = self._plane.client
        begin = time.monotonic()

        def create(numbered: tuple[int, JobKey]) -> None:
            index, key = numbered
            pipelines = 2 if index < self._size.stragglers else 1
            shape = {"stages": STAGES, "pipelines": pipelines, "microbatches": MICROBATCHES}
            shape["tensorParallel"] = TENSOR_PARALLEL
            client.post(job_path(key[0]), perseus_job(key[1], gpus=GPUS_OF_A_POD, parallelism=shape))

        with ThreadPoolExecutor(CREATORS) as pool:
            list(pool.map(create, enumerate(self._keys)))
        say(f"{self._size.jobs} jobs created in {time.monotonic() - begin:.1f} s")
        wait_until("a plan for every job", lambda: all(map(self._training.generation, self._keys)),
                   timeout_seconds=_PATIENCE_SECONDS)  # fmt: skip
        return time.monotonic() - begin

    def _begin_training(self) -> None:
        """A job's ranks train once all its pods are ready, as the Job controller counts them."""
        selector = f"{names.LABEL_COMPONENT}=trainer"
        while not self._done.wait(_LOOK_SECONDS):
            for job in self._plane.client.items("/apis/batch/v1/jobs", labelSelector=selector, resourceVersion="0"):
                key = (job["metadata"]["namespace"], job["metadata"]["name"])
                pods = job["spec"]["completions"]
                if key not in self._training_keys and (job.get("status") or {}).get("ready") == pods:
                    found = frontier_of(STAGES, MICROBATCHES, _seconds(_model(key)), TENSOR_PARALLEL)
                    self._training.begin(key, pods, pods * GPUS_OF_A_POD, found.fastest.iteration_seconds)
                    self._training_keys.add(key)

    def _all_ready(self) -> bool:
        jobs = self._plane.client.items(job_path(""), resourceVersion="0")
        return len(jobs) == len(self._keys) and all(_condition(job, "Ready") == "True" for job in jobs)

    def _quiet(self) -> None:
        """Wait until the operator has written nothing for a while."""
        before, since = -1, time.monotonic()
        deadline = since + _PATIENCE_SECONDS
        while time.monotonic() - since < 5.0 and time.monotonic() < deadline:
            log = AuditLog(self._plane.audit_log)
            time.sleep(1.0)
            if (now := sum(log.writes(USER).values())) != before and now:
                since = time.monotonic()
            before = now

    def _writes_by_job(self, log: AuditLog) -> dict[str, int]:
        """Count the writes that concern each job; its number stands in the name of all that belongs to it."""
        found = dict.fromkeys((key[1] for key in self._keys), 0)
        nameless = 0
        for use in log.uses(USER):
            if is_write(use):
                match = re.search(r"job-\d{4}", use.name)
                if match:
                    found[match[0]] += 1
                else:
                    nameless += 1
        # An event's name is made by the server: each job's share is the mean.
        return {name: count + round(nameless / len(found)) for name, count in found.items()}

    def _restart(self) -> int:
        self._operator.kill()
        log = AuditLog(self._plane.audit_log)
        self._operator.start()
        time.sleep(self._size.restart_seconds)
        writes = log.writes(USER)
        for what, count in writes.most_common():
            say(f"after the restart: {count} x {what}")
        return sum(writes.values())

    def _straggle(self) -> tuple[float, float]:
        keys = self._keys[: self._size.stragglers]
        before = {key: self._training.generation(key) for key in keys}
        begin = time.time()
        self._training.slow_down(keys, 0, SLOWDOWN)
        wait_until("a plan for every straggler",
                   lambda: all(self._training.generation(key) > before[key] for key in keys),
                   timeout_seconds=_PATIENCE_SECONDS, period_seconds=0.05)  # fmt: skip
        times = [self._training.seen_at(key, before[key] + 1) or begin for key in keys]
        return max(times) - begin, min(times) - begin


def _seconds(model: int) -> float:
    """Seconds of a forward: iterations of half a second, so that the operator's time is seen and not the training's."""
    return 0.01 + 0.0002 * model


def _model(key: JobKey) -> int:
    return int(key[0].removeprefix("team-"))


def _condition(job: dict[str, Any], wanted: str) -> str:
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((each["status"] for each in conditions if each["type"] == wanted), "")
