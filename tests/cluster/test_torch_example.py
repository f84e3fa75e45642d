"""examples/torch-pipelining as its PerseusJob: real torch in pods, gloo between them, their GPUs simulated.

An image with torch would be gigabytes to build and to copy. What its Dockerfile puts into an image is mounted instead:
the torch that this checkout's tests run on, and the example's scripts, into the simulator's image.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from perseus_api import names
from perseus_simulator.node import SimulatedNode
from product import (
    NAMESPACE,
    RELEASED_WITHIN_SECONDS,
    SIMULATOR_STATE,
    Training,
    clock_calls_of,
    conditions_of,
    wait_until,
)

from testbed.installation import ROOT, Installation

pytestmark = pytest.mark.cluster
EXAMPLE = ROOT / "examples" / "torch-pipelining"
NAME = EXAMPLE.name
STAGES, PLANNED_ITERATIONS = 4, 6
TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True)
class Run:
    """What was seen of the run.

    Attributes:
        losses: of the iterations, from the last rank's log.
        applied: the condition PlanApplied while it trained.
        clocks_set: how often each GPU's clock was set through NVML under the plan.
        locks_left: GPUs that were still locked when the job was deleted, after the time that is promised.
    """

    losses: list[float]
    applied: dict[str, str]
    clocks_set: list[int]
    locks_left: list[str]


def mounted(documents: list[dict[str, Any]], tag: str) -> list[dict[str, Any]]:
    """Put the simulator's image with torch and the scripts mounted in the place of the example's own image."""
    folders = {"torch": packages(), "training": EXAMPLE}
    for document in documents:
        if document["kind"] != names.KIND:
            continue
        pod = document["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        container["image"] = f"localhost/perseus-simulator:{tag}"
        container["command"] = ["python", "/training/train.py", "--iterations", "1000000"]
        container["env"].append({"name": "PYTHONPATH", "value": "/torch"})
        for name, folder in folders.items():
            container["volumeMounts"].append({"name": name, "mountPath": f"/{name}", "readOnly": True})
            pod["volumes"].append({"name": name, "hostPath": {"path": str(folder), "type": "Directory"}})
    return documents


def packages() -> Path:
    """The folder in which this checkout's torch is installed, with all that it needs."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parents[1]


def losses_of(installation: Installation) -> list[float]:
    """The losses that the last rank has printed."""
    last = Training(installation, NAME).pod_name(STAGES - 1)
    said = installation.kubectl("logs", "-n", NAMESPACE, last)
    return [float(each) for each in re.findall(r"^iteration \d+: loss ([\d.]+)", said, flags=re.MULTILINE)]


@pytest.fixture(scope="module")
def run(installation: Installation) -> Iterator[Run]:
    """Apply the example, let its plan hold for some iterations, and delete it."""
    remove = ("delete", "-n", NAMESPACE, "-k", str(EXAMPLE), "--ignore-not-found", "--timeout=60s")
    documents = list(yaml.safe_load_all(installation.kubectl("kustomize", str(EXAMPLE))))
    installation.kubectl(*remove)
    begin = time.monotonic()
    text = yaml.safe_dump_all(mounted(documents, installation.tag))
    installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=text)
    training = Training(installation, NAME, stages=STAGES)
    with SimulatedNode.open(SIMULATOR_STATE) as node:
        try:
            sample = training.wait_for_plan(timeout_seconds=TIMEOUT_SECONDS)
            print(f"all ranks run the plan after {time.monotonic() - begin:.0f} s")
            gpus = [node.gpu(rank.gpu) for _, rank in sorted(sample.ranks.items())]
            before = [clock_calls_of(gpu)[0] for gpu in gpus]
            trained = len(losses_of(installation))
            wait_until(
                "iterations under the plan",
                lambda: len(losses_of(installation)) >= trained + PLANNED_ITERATIONS,
                TIMEOUT_SECONDS,
            )
            clocks_set = [clock_calls_of(gpu)[0] - each for gpu, each in zip(gpus, before, strict=True)]
            applied = lambda: conditions_of(installation, NAME)["PlanApplied"]  # noqa: E731
            wait_until("the condition says it", lambda: applied()["reason"] == "AllAgents", TIMEOUT_SECONDS)
            found = losses_of(installation), applied(), clocks_set
        finally:
            installation.kubectl(*remove)
        end = time.monotonic() + RELEASED_WITHIN_SECONDS
        while installation.locked_gpus() and time.monotonic() < end:
            time.sleep(0.1)
        yield Run(*found, installation.locked_gpus())
    print(f"all is over after {time.monotonic() - begin:.0f} s")


def test_real_torch_learns_in_pods(run: Run) -> None:
    assert run.losses[-1] < run.losses[0]


def test_its_order_is_the_plans_and_every_agent_follows(run: Run) -> None:
    assert run.applied["status"] == "True"


def test_its_clocks_are_set_at_its_instructions(run: Run) -> None:
    print(f"clocks set under the plan: {run.clocks_set}")
    assert min(run.clocks_set) >= 0
    assert max(run.clocks_set) >= PLANNED_ITERATIONS


def test_no_lock_is_left(run: Run) -> None:
    assert run.locks_left == []
