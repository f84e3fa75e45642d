"""One thousand jobs of ten pipelines: how long a round takes, and how large the operator is.

Real parts: etcd and kube-apiserver, the operator as a process with every job's plan, Prometheus with the recording
rules. The fleet exists as metrics only (`exporter`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perseus_api import names
from perseus_operator.client import CONFIG_MAP, Api
from perseus_planner import Pipeline, frontier
from perseus_simulator.testing import example_profile

ROOT = Path(__file__).resolve().parents[2]
JOBS, PIPELINES, PAGES, NAMESPACES = 1000, 10, 20, 10
SCRAPE_SECONDS = 10.0
MEASURED_SECONDS = 60.0
sys.path.insert(0, str(ROOT / "tests" / "operator"))


def measure_scale(jobs: int = JOBS) -> dict[str, Any]:
    """Return durations of rounds, size of the operator, and how a straggler is answered at that size."""
    from bare import CSV, HEADER, OperatorProcess, bare_cluster, free_port
    from perseus_operator.profiles import profile_checksum
    from real_prometheus import PrometheusServer

    found = frontier(example_profile(), Pipeline(1, 12), profile_checksum=profile_checksum(CSV, HEADER))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = stack.enter_context(bare_cluster(folder))
        os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
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
        operator = OperatorProcess(cluster, free_port())
        operator.environment["PERSEUS_PROMETHEUS_URL"] = prometheus.url
        operator.start()
        stack.callback(operator.kill)
        begin = time.monotonic()
        asyncio.run(_apply(jobs, CSV, HEADER, base64.b64encode(found.encode()).decode()))
        _wait("all plans are written", lambda: _count(operator.metrics(), "perseus_job_plan_generation") >= jobs, 1200)
        settled = time.monotonic() - begin
        time.sleep(3 * SCRAPE_SECONDS)
        rounds, sizes, queries = [], [], []
        before = operator.metrics()
        asked = _prometheus_queries(prometheus)
        until = time.monotonic() + MEASURED_SECONDS
        while time.monotonic() < until:
            time.sleep(2)
            now = operator.metrics()
            count = _value(now, "round_seconds_count") - _value(before, "round_seconds_count")
            if count:
                rounds.append((_value(now, "round_seconds_sum") - _value(before, "round_seconds_sum")) / count)
                more = _prometheus_queries(prometheus)
                queries.append((more - asked) / count)
                before, asked = now, more
            sizes.append(_resident_megabytes(operator.pid))
        control.write_text(json.dumps({"slow": {"job-7/3": 1.2}}))
        injected = time.monotonic()
        plan = lambda: cluster.plan("fleet-7", "job-7")  # noqa: E731
        _wait("the straggler is answered", lambda: (now := plan()) is not None and now.generation > 1, 60)
        return {
            "jobs": jobs,
            "pipelines": jobs * PIPELINES,
            "round_seconds": statistics.mean(rounds),
            "round_seconds_worst_two_seconds": max(rounds),
            "queries_per_round": statistics.mean(queries),
            "operator_megabytes": max(sizes),
            "settled_seconds": settled,
            "straggler_answered_seconds": time.monotonic() - injected,
            "scrape_seconds": SCRAPE_SECONDS,
        }


async def _apply(jobs: int, csv_text: str, header: str, encoded: str) -> None:
    api = await Api.connect("bench")
    limit = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        async with limit:
            namespace, name = f"fleet-{number % NAMESPACES}", f"job-{number}"
            await api.apply(_job(namespace, name))
            patch = {"binaryData": {names.FRONTIER_KEY: encoded}}
            for _ in range(600):
                done = await api.merge(CONFIG_MAP, namespace, names.frontier_config_map_name(name), patch)
                if done is not None:
                    return
                await asyncio.sleep(1)
            raise TimeoutError(f"{name} got no frontier ConfigMap")

    try:
        for number in range(NAMESPACES):
            namespace = f"fleet-{number}"
            process = await asyncio.create_subprocess_exec(
                _kubectl(), "--kubeconfig", os.environ["KUBECONFIG"], "create", "namespace", namespace,
                stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            await process.wait()
            data = {names.PROFILE_CSV_KEY: csv_text, names.PROFILE_HEADER_KEY: header}
            metadata = {"name": "profile", "namespace": namespace}
            await api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        await asyncio.gather(*(one(number) for number in range(jobs)))
    finally:
        await api.close()


def _kubectl() -> str:
    from testbed import binaries
    from testbed.folders import Folders

    return str(binaries.build(Folders.from_environment().cache)["kubectl"])


def _job(namespace: str, name: str) -> dict[str, Any]:
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 1}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parallelism": {"stages": 1, "pipelines": PIPELINES, "microbatches": 12},
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


def _resident_megabytes(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    if found is None:
        raise ValueError(f"process {process} tells no size")
    return int(found.group(1)) / 1024
