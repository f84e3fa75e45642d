"""A node is cordoned and drained under a job that trains: its clocks come back, its agent stays and serves it again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from perseus_simulator.node import SimulatedNode
from product import (
    RELEASED_WITHIN_SECONDS,
    Training,
    perseus_job,
    pod_of,
    processes_of_pod,
    restarts,
    small_training,
    wait_until,
)

from testbed.installation import Installation
from testbed.site import NODE_NAME

pytestmark = pytest.mark.cluster
DRAINED_WITHIN_SECONDS = 120.0


@pytest.fixture
def training(installation: Installation) -> Iterator[Training]:
    """A small job whose evicted pods Kubernetes replaces at once: it counts them one by one, as the policy allows."""
    never = perseus_job("small", installation.tag)["spec"]["template"]
    never["spec"]["restartPolicy"] = "Never"
    with small_training(installation, template=never) as small:
        yield small


@pytest.fixture
def node_in_use(installation: Installation) -> Iterator[str]:
    """The node; it takes pods again afterwards."""
    yield NODE_NAME
    installation.kubectl("uncordon", NODE_NAME)


def test_a_node_that_is_drained_leaves_no_lock_and_its_agent_serves_again(
    training: Training, gpus: SimulatedNode, installation: Installation, node_in_use: str
) -> None:
    before = training.wait_for("an iteration under the plan", lambda sample: sample.pipeline_iteration[0] > 4)
    agent = pod_of(installation, "agent")
    pods = {training.pod_uid(stage): before.ranks[0, stage].gpu for stage in range(training.stages)}
    trainers = {gpu: pid for uid, gpu in pods.items() for pid in processes_of_pod(uid, "train")}
    assert len(trainers) == training.stages

    installation.kubectl("cordon", node_in_use)
    begun = training.sample().pipeline_iteration[0]
    training.wait_for("training goes on", lambda sample: sample.pipeline_iteration[0] > begun + 1)
    assert any(gpus.gpu(gpu).locked_range() for gpu in trainers), "a cordon evicts nobody"

    with ThreadPoolExecutor() as pool:
        drain = pool.submit(
            installation.kubectl,
            "drain", node_in_use, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
            f"--timeout={DRAINED_WITHIN_SECONDS:.0f}s",
            timeout_seconds=DRAINED_WITHIN_SECONDS + 30,
        )  # fmt: skip
        free = _released_after_the_end(trainers, gpus)
        drain.result()
    assert max(free.values()) <= RELEASED_WITHIN_SECONDS, free
    assert not any(gpu.locked_range() for gpu in gpus.gpus)
    stayed = pod_of(installation, "agent")
    assert stayed["metadata"]["uid"] == agent["metadata"]["uid"], "the agent is no pod to evict"
    assert restarts(stayed) == restarts(agent)

    installation.kubectl("uncordon", node_in_use)
    installation.forget_addresses()
    training.wait_for_plan(timeout_seconds=180)
    assert not {training.pod_uid(stage) for stage in range(training.stages)} & set(pods), "other pods train"
    wait_until("clocks are locked again", lambda: any(gpu.locked_range() for gpu in gpus.gpus), 60)
    assert pod_of(installation, "agent")["metadata"]["uid"] == agent["metadata"]["uid"]


def _released_after_the_end(trainers: dict[str, int], gpus: SimulatedNode) -> dict[str, float]:
    """Watch until every GPU's trainer has ended and it is free; return the seconds from the one to the other."""
    deadline = time.monotonic() + DRAINED_WITHIN_SECONDS
    ended: dict[str, float] = {}
    free: dict[str, float] = {}
    while len(free) < len(trainers):
        assert time.monotonic() < deadline, f"not drained; ended: {len(ended)}, free: {len(free)}"
        for gpu, pid in trainers.items():
            if gpu not in ended and not Path(f"/proc/{pid}").exists():
                ended[gpu] = time.monotonic()
            if gpu in ended and gpu not in free and gpus.gpu(gpu).locked_range() is None:
                free[gpu] = time.monotonic() - ended[gpu]
        time.sleep(0.01)
    return free
