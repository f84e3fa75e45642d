"""Training scripts that do what they should not, in pods: they train on, and PlanApplied tells which pod and why.

Each is a job of one stage that follows its plan until its process is told, by a signal, to misbehave; only the one
whose two pods say to be the same rank does so from its first iteration on. All of them train at the same time.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from product import (
    NAMESPACE,
    Training,
    conditions_of,
    perseus_job,
    processes_of_pod,
    profile_config_map,
    restarts,
    wait_until,
)

from testbed.installation import Installation

pytestmark = pytest.mark.cluster
PROFILE = "scripts-profile"
PLAN_TIMEOUT_SECONDS, TIMEOUT_SECONDS = 180.0, 60.0
SCRIPT = """
import os, signal, sys, time
case = sys.argv[1]
if case == "one-stage-twice":
    os.environ["PERSEUS_RANK"] = "0"
import perseus_trainer as perseus

told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(True))

def step(order):
    with perseus.iteration():
        for letter in order:
            with perseus.instruction({"F": "forward", "B": "backward"}[letter]):
                time.sleep(0.02)
                if told and case == "exception":
                    raise ValueError("a bad batch")
                if told and case == "crash":
                    os._exit(1)

number = 0
while True:
    order = "FFBB" if case == "one-stage-twice" else "FBFB"
    if told:
        order = {"out-of-order": "FFBB", "microbatches": "FBFBFB"}.get(case, order)
    if told and case == "fork":
        told.clear()
        if child := os.fork():
            os.waitpid(child, 0)
    try:
        step(order)
    except ValueError:
        pass
    number += 1
    print(number, flush=True)
"""
ORDER, BATCHES, RAISES, FORKS = "out-of-order", "microbatches", "exception", "fork"
CRASHES, TWICE = "crash", "one-stage-twice"
TOLD = {
    ORDER: ("PlanNotFollowed", "runs its instructions in another order than the plan"),
    BATCHES: ("PlanNotFollowed", "runs more instructions in an iteration than the plan"),
    RAISES: ("PlanNotFollowed", "left an iteration by an exception"),
    FORKS: ("RankRefused", "two of its processes (or a fork) train as the same rank"),
    TWICE: ("RankRefused", "it says to be a rank that another pod is"),
}


def job(case: str, tag: str) -> dict[str, Any]:
    """A job whose pods run the script."""
    shape = {"stages": 2 if case == TWICE else 1, "pipelines": 1, "microbatches": 2}
    spec: dict[str, Any] = {
        "parallelism": shape,
        "objective": {"type": "MinimumEnergy"},
        "profiling": {"profileRef": {"name": PROFILE}},
        "straggler": {"enabled": False, "driftPercent": 0},  # What trains takes no time of a GPU.
    }
    document = perseus_job(case, tag, **spec)
    (container,) = document["spec"]["template"]["spec"]["containers"]
    container["command"] = ["python", "-c", SCRIPT, case]
    return document


@pytest.fixture(scope="module")
def cluster(installation: Installation) -> Iterator[Installation]:
    """All of the jobs, those that follow a plan at first told to misbehave once they do."""
    cases = [*TOLD, CRASHES]
    remove = ("delete", "-n", NAMESPACE, f"configmap/{PROFILE}", *(f"perseusjob/{case}" for case in cases))
    leave_nothing = (*remove, "--ignore-not-found", "--timeout=60s")
    installation.kubectl(*leave_nothing)
    items = [profile_config_map(PROFILE), *(job(case, installation.tag) for case in cases)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=text)
    try:
        for case in cases:
            if case != TWICE:
                wait_for_reason(installation, case, "AllAgents", PLAN_TIMEOUT_SECONDS)
                uid = Training(installation, case).pod_uid(0)
                os.kill(min(processes_of_pod(uid, case)), signal.SIGUSR1)
        yield installation
    finally:
        installation.kubectl(*leave_nothing)


def wait_for_reason(installation: Installation, case: str, reason: str, timeout_seconds: float) -> str:
    """Wait for the reason of PlanApplied; return its message."""

    def applied() -> dict[str, str]:
        return conditions_of(installation, case).get("PlanApplied", {})

    wait_until(f"{case}: {reason}", lambda: applied().get("reason") == reason, timeout_seconds)
    return applied()["message"]


def iterations(installation: Installation, case: str) -> int:
    """How many iterations the script of rank 0 has printed."""
    said = installation.kubectl("logs", "-n", NAMESPACE, Training(installation, case).pod_name(0), "--tail=1")
    return int(said.strip().splitlines()[-1]) if said.strip() else 0


@pytest.mark.parametrize("case", TOLD)
def test_the_condition_says_why_and_training_goes_on(case: str, cluster: Installation) -> None:
    reason, words = TOLD[case]
    message = wait_for_reason(cluster, case, reason, TIMEOUT_SECONDS)
    assert words in message
    assert f"pod {case}-" in message
    before = iterations(cluster, case)
    wait_until(f"{case} trains on", lambda: iterations(cluster, case) > before, TIMEOUT_SECONDS)


def test_a_process_that_dies_in_the_middle_starts_again_and_follows_its_plan(cluster: Installation) -> None:
    wait_until(
        "it was started again", lambda: any(restarts(pod) for pod in Training(cluster, CRASHES).pods()), TIMEOUT_SECONDS
    )
    wait_for_reason(cluster, CRASHES, "AllAgents", PLAN_TIMEOUT_SECONDS)
    before = iterations(cluster, CRASHES)
    wait_until("it trains on", lambda: iterations(cluster, CRASHES) > before, TIMEOUT_SECONDS)
