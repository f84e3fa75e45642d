"""How fast every agent has the answer to a straggler, beside the cluster: real API server, operator and Prometheus.

Prometheus scrapes every 5 s. Training and agents exist as metrics and as a watch on the plans (`harness.training`), by
the agents' own rule; so what is missing against a cluster is the kubelet, NVML, and the noise of real training. Times
are from the end of the first slow (or first fast again) iteration until the plan for it has come through the watch.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perseus_api import names

from harness.controlplane import ControlPlane, free_port, running
from harness.objects import (
    PIPELINES,
    STAGES,
    core_path,
    frontier_data,
    frontier_of,
    job_path,
    perseus_job,
    profile_config_map,
)
from harness.operator import OperatorProcess
from harness.prometheus_server import PrometheusServer
from harness.training import JobKey, Training

NAMESPACE, JOBS = "detection", 5
FORWARD_SECONDS = 0.175  # An iteration of 2.8 s, as GPT-3's.
SCRAPE_SECONDS = 5.0
RATIOS = (1.2, 1.05, 1.5, 1.1)
CALM_SECONDS = 40.0
QUIET_SECONDS = 12.0


def measure_detection(events: int = 20) -> dict[str, Any]:
    """Return the latencies of so many stragglers, and of as many recoveries."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = stack.enter_context(running(folder))
        training = stack.enter_context(Training(plane))
        prometheus = PrometheusServer(folder / "prometheus", free_port(), training.port, SCRAPE_SECONDS, rules=False)
        url = stack.enter_context(prometheus).url
        log = folder / "operator.log"
        stack.enter_context(OperatorProcess(plane.operator_kubeconfig, log, free_port(), PERSEUS_PROMETHEUS_URL=url))
        keys = [(NAMESPACE, f"job-{number}") for number in range(JOBS)]
        _begin(plane, training, keys)
        time.sleep(CALM_SECONDS)
        with ThreadPoolExecutor(JOBS) as pool:
            found = list(pool.map(lambda key: _events(training, key, events // JOBS), keys))
    return {
        "events": sum(len(answers) for answers, _ in found),
        "answer_seconds": [each for answers, _ in found for each in answers],
        "recovery_seconds": [each for _, recoveries in found for each in recoveries],
        "scrape_seconds": SCRAPE_SECONDS,
        "ratios": RATIOS,
    }


def _begin(plane: ControlPlane, training: Training, keys: list[JobKey]) -> None:
    client = plane.client
    client.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    client.post(core_path("configmaps", NAMESPACE), profile_config_map(seconds=FORWARD_SECONDS))
    for _, name in keys:
        # Events follow each other faster than the dwell time allows; it is not what is measured here.
        spec = {"accounting": {"baselineIterations": 2}, "straggler": {"dwellSeconds": 2}}
        client.post(job_path(NAMESPACE), perseus_job(name, **spec))
    for key in keys:
        path = core_path("configmaps", NAMESPACE, names.frontier_config_map_name(key[1]))
        _wait(f"{path} is there", lambda path=path: client.get(path))  # type: ignore[misc]
        client.merge(path, {"binaryData": frontier_data(seconds=FORWARD_SECONDS)})
        unlocked = frontier_of(seconds=FORWARD_SECONDS).fastest.iteration_seconds
        training.begin(key, PIPELINES, STAGES * PIPELINES, unlocked)
        _wait(f"{key} runs its plan", lambda key=key: training.active_generation(key))  # type: ignore[misc]


def _events(training: Training, key: JobKey, events: int) -> tuple[list[float], list[float]]:
    source = random.Random(json.dumps(key))
    answers, recoveries = [], []
    for number in range(events):
        time.sleep(QUIET_SECONDS + source.uniform(0, SCRAPE_SECONDS))
        answers.append(_reaction(training, key, RATIOS[number % len(RATIOS)]))
        time.sleep(QUIET_SECONDS + source.uniform(0, SCRAPE_SECONDS))
        recoveries.append(_reaction(training, key, 1.0))
    return answers, recoveries


def _reaction(training: Training, key: JobKey, ratio: float) -> float:
    """Change a pipeline's speed; return the seconds from the first iteration that shows it to the plan's arrival."""
    generation, iteration = training.generation(key), training.iteration(key)
    training.slow_down([key], PIPELINES - 1, ratio)
    _wait("the first iteration of the new speed ends", lambda: training.iteration(key) >= iteration + 2)
    shown = time.time()
    _wait("the plan for it", lambda: training.generation(key) > generation)
    seen = training.seen_at(key, generation + 1)
    return (seen or time.time()) - shown


def _wait(what: str, condition: Any, timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:.0f} s")
        time.sleep(0.02)
