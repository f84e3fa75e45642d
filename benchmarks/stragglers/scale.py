"""One thousand jobs of ten pipelines: how long a round takes, and how large the operator is.

Real parts: etcd and kube-apiserver, the operator as a process with every job's plan, Prometheus with the recording
rules. The fleet exists as metrics only (`exporter`).
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perseus_api import names

from harness.client import Client
from harness.controlplane import free_port, running
from harness.objects import core_path, frontier_data, frontier_of, job_path, profile_config_map
from harness.operator import OperatorProcess
from harness.prometheus_server import PrometheusServer

ROOT = Path(__file__).resolve().parents[2]
JOBS, PIPELINES, PAGES, NAMESPACES = 1000, 10, 20, 10
STAGES, MICROBATCHES = 1, 12
SCRAPE_SECONDS = 10.0
PAGE_SECONDS, MEASURED_SECONDS = 10.0, 90.0


def measure_scale(jobs: int = JOBS) -> dict[str, Any]:
    """Return durations of rounds, size of the operator, and how a straggler is answered at that size."""
    found = frontier_of(STAGES, MICROBATCHES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = stack.enter_context(running(folder))
        port, control = free_port(), folder / "control.json"
        period = found.plans[0].iteration_seconds
        exporter = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stragglers.exporter", str(port), str(jobs), str(PIPELINES), str(PAGES),
             str(period), str(control)], cwd=ROOT,
        )  # fmt: skip
        stack.callback(exporter.kill)
        prometheus = PrometheusServer(folder / "prometheus", free_port(), port, SCRAPE_SECONDS)
        prometheus.paths = [f"/metrics/{page}" for page in range(PAGES)]
        prometheus.start()
        stack.callback(prometheus.stop)
        log = folder / "operator.log"
        operator = stack.enter_context(
            OperatorProcess(plane.operator_kubeconfig, log, free_port(), PERSEUS_PROMETHEUS_URL=prometheus.url)
        )
        begin = time.monotonic()
        _apply(plane.client, jobs)
        _wait(
            "all plans are written",
            lambda: _count(operator.page("metrics")[1], "perseus_job_plan_generation") >= jobs,
            1200,
        )
        settled = time.monotonic() - begin
        time.sleep(3 * SCRAPE_SECONDS)
        rounds, sizes, queries = [], [], []
        before = operator.page("metrics")[1]
        asked = _prometheus_queries(prometheus)
        until = time.monotonic() + MEASURED_SECONDS
        while time.monotonic() < until:
            # Its page takes the operator's time, too: no more often than a Prometheus reads it.
            time.sleep(PAGE_SECONDS)
            now = operator.page("metrics")[1]
            count = _value(now, "round_seconds_count") - _value(before, "round_seconds_count")
            if count:
                rounds.append((_value(now, "round_seconds_sum") - _value(before, "round_seconds_sum")) / count)
                more = _prometheus_queries(prometheus)
                queries.append((more - asked) / count)
                before, asked = now, more
            sizes.append(operator.megabytes)
        control.write_text(json.dumps({"slow": {"job-7/3": 1.2}}))
        injected = time.monotonic()
        generation = 'perseus_job_plan_generation{job="job-7",namespace="fleet-7"} '
        _wait("the straggler is answered", lambda: f"{generation}2.0" in operator.page("metrics")[1], 60)
        return {
            "jobs": jobs,
            "pipelines": jobs * PIPELINES,
            "round_seconds": statistics.mean(rounds),
            "round_seconds_worst_ten_seconds": max(rounds),
            "queries_per_round": statistics.mean(queries),
            "operator_megabytes": max(sizes),
            "settled_seconds": settled,
            "straggler_answered_seconds": time.monotonic() - injected,
            "scrape_seconds": SCRAPE_SECONDS,
        }


def _apply(client: Client, jobs: int) -> None:
    """Create all jobs, and play their optimisation pods."""
    for number in range(NAMESPACES):
        namespace = f"fleet-{number}"
        metadata = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        client.post("/api/v1/namespaces", metadata)
        client.post(core_path("configmaps", namespace), profile_config_map(stages=STAGES))
    filled = {"binaryData": frontier_data(STAGES, MICROBATCHES)}

    def create(number: int) -> None:
        namespace = f"fleet-{number % NAMESPACES}"
        client.post(job_path(namespace), _job(namespace, f"job-{number}"))

    def optimise(number: int) -> None:
        namespace = f"fleet-{number % NAMESPACES}"
        path = core_path("configmaps", namespace, names.frontier_config_map_name(f"job-{number}"))
        _wait("the frontier's ConfigMap", lambda: client.get(path), 600)
        client.merge(path, filled)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(jobs)))
        list(pool.map(optimise, range(jobs)))


def _job(namespace: str, name: str) -> dict[str, Any]:
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 1}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parallelism": {"stages": STAGES, "pipelines": PIPELINES, "microbatches": MICROBATCHES},
            "profiling": {"profileRef": {"name": "profile"}},
            "template": {"spec": {"containers": [container]}},
        },
    }


def _wait(what: str, condition: Any, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:.0f} s")
        time.sleep(0.5)


def _value(page: str, name: str) -> float:
    found = re.search(rf"^perseus_operator_straggler_{name} (\S+)$", page, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def _count(page: str, name: str) -> int:
    return len(re.findall(rf"^{name}\{{", page, re.MULTILINE))


def _prometheus_queries(prometheus: Any) -> float:
    page = prometheus.metrics()
    pattern = r'^prometheus_http_requests_total\{code="200",handler="/api/v1/query"\} (\S+)$'
    found = re.search(pattern, page, re.MULTILINE)
    return float(found.group(1)) if found else 0.0
