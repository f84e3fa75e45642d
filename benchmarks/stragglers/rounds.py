"""A round of the straggler loop over 10,000 pipelines: the operator's own monitor against a real Prometheus.

Prometheus scrapes 1,000 jobs x 10 pipelines (`exporter`) with the recording rules. The monitor runs alone in a process
of its own, without an API server: no visit disturbs what is timed, and its memory is that of monitor and plans. `scale`
is the whole operator.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import JobReference
from perseus_operator.monitor import Monitor
from perseus_operator.planning import Stragglers, make_plan
from perseus_operator.prometheus import Prometheus
from perseus_operator.transport import Connection, PrometheusAddress

from harness.controlplane import free_port, resident_megabytes
from harness.objects import frontier_of
from harness.prometheus_server import PrometheusServer

ROOT = Path(__file__).resolve().parents[2]
JOBS, PIPELINES, PAGES = 1000, 10, 20
SCRAPE_SECONDS = 15.0
ROUNDS = 30


def measure_rounds(jobs: int = JOBS) -> dict[str, Any]:
    """Return durations of rounds and the memory of the process that makes them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port, control = free_port(), folder / "control.json"
        period = frontier_of(1, 12).plans[0].iteration_seconds
        arguments = [str(port), str(jobs), str(PIPELINES), str(PAGES), str(period), str(control)]
        module = [sys.executable, "-m"]
        exporter = subprocess.Popen([*module, "benchmarks.stragglers.exporter", *arguments], cwd=ROOT)
        stack.callback(exporter.kill)
        prometheus = PrometheusServer(folder / "prometheus", free_port(), port, SCRAPE_SECONDS)
        prometheus.paths = [f"/metrics/{page}" for page in range(PAGES)]
        prometheus.start()
        stack.callback(prometheus.stop)
        time.sleep(4 * SCRAPE_SECONDS)
        command = [*module, "benchmarks.stragglers.rounds", prometheus.url, str(jobs)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return {**found, "jobs": jobs, "pipelines": jobs * PIPELINES, "scrape_seconds": SCRAPE_SECONDS}


async def make_rounds(url: str, jobs: int) -> dict[str, Any]:
    """Make rounds in this process."""
    spec = PerseusJobSpec.parse(
        {
            "parallelism": {"stages": 1, "pipelines": PIPELINES, "microbatches": 12},
            "profiling": {"profileRef": {"name": "profile"}},
            "template": {},
        }
    )
    monitor = Monitor(lambda _: None)
    frontier = frontier_of(1, 12)
    for number in range(jobs):
        key = (f"fleet-{number % 10}", f"job-{number}")
        reference = JobReference(namespace=key[0], name=key[1], uid="u")
        plan = make_plan(reference, spec, frontier, Stragglers(), 1, 11)
        monitor.planned(key, None, plan, spec, Stragglers())
    durations, seen = [], 0
    async with aiohttp.ClientSession() as session:
        prometheus = Prometheus(Connection(PrometheusAddress(url), session))
        for number in range(ROUNDS + 2):
            begin = time.perf_counter()
            await monitor._round(prometheus)
            if number > 1:  # The first ones also ask for history and rules.
                durations.append(time.perf_counter() - begin)
            job = monitor.find(("fleet-7", "job-7"))
            seen = len(job.report.pipelines) if job is not None else 0
            await asyncio.sleep(0.2)
    if not monitor.answered or seen != PIPELINES:
        raise ValueError(f"the rounds saw {seen} of {PIPELINES} pipelines: {monitor.failure}")
    return {
        "round_seconds": statistics.median(durations),
        "round_seconds_worst": max(durations),
        "monitor_megabytes": resident_megabytes(os.getpid()),
        "with_rules": bool(monitor.has_rules),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(make_rounds(sys.argv[1], int(sys.argv[2])))))
