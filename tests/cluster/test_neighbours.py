"""Two PerseusJobs and strangers on one node: each job keeps to its own GPUs and plan, strangers are never touched.

One stranger trains without the label, the other one has locked its GPU's clock by its own means. Clocks are read from
the device itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from perseus_api import names
from perseus_simulator.node import SimulatedGpu, SimulatedNode
from product import (
    NAMESPACE,
    RELEASED_WITHIN_SECONDS,
    Training,
    children_of,
    clock_calls_of,
    conditions_of,
    kill_process,
    pod_of,
    processes_of_pod,
    restarts,
    wait_until,
)

from testbed.installation import Installation

pytestmark = pytest.mark.cluster
FOREIGN_LOCK = (705, 705)
STRANGERS = {"unlabelled": 1, "locked": 2}  # GPUs by name


@pytest.fixture
def other(installation: Installation) -> Iterator[Training]:
    """A second job, of half as many stages and with another objective."""
    second = Training(installation, "other", stages=4)
    second.delete()
    shape = {"stages": 4, "pipelines": 1, "microbatches": 4}
    second.apply(parallelism=shape, objective={"type": "MinimumEnergy"})
    second.wait_for_plan()
    yield second
    second.delete()


@pytest.fixture
def strangers(installation: Installation, gpus: SimulatedNode) -> Iterator[list[SimulatedGpu]]:
    """The GPUs of pods that are no PerseusJob's: the first trains, the others wait, one of them locked."""
    for name, number in STRANGERS.items():
        pod = json.dumps(stranger(name, number, installation.tag))
        installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=pod)
    found: list[SimulatedGpu] = []
    try:
        for name in STRANGERS:
            installation.kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
            told = installation.kubectl("exec", "-n", NAMESPACE, name, "--", "printenv", names.ENV_VISIBLE_DEVICES)
            found += [gpus.gpu(uuid) for uuid in told.strip().split(",")]
        found[-1].foreign_lock(*FOREIGN_LOCK)
        yield found
    finally:
        for gpu in found[-1:]:
            gpu.foreign_reset()
        installation.kubectl("delete", "pod", *STRANGERS, "-n", NAMESPACE, "--ignore-not-found", "--timeout=60s")


def test_jobs_and_strangers_on_one_node_do_not_meet(
    training: Training,
    strangers: list[SimulatedGpu],
    other: Training,
    gpus: SimulatedNode,
    installation: Installation,
) -> None:
    jobs = (training, other)
    before = [clock_calls_of(gpu) for gpu in strangers]
    kernels = strangers[0].status().kernels
    own = {job.name: [gpus.gpu(rank.gpu) for rank in job.wait_for_plan().ranks.values()] for job in jobs}
    owned = [gpu.uuid for each in (*own.values(), strangers) for gpu in each]
    assert len(set(owned)) == len(owned) == training.stages + other.stages + sum(STRANGERS.values())
    for job in jobs:
        first = job.sample().pipeline_iteration[0]
        job.wait_for("three iterations", lambda sample, first=first: sample.pipeline_iteration[0] > first + 3)
        wait_until("its clocks are set", lambda job=job: any(gpu.locked_range() for gpu in own[job.name]), 10)

    # Another plan for one job is none for the other.
    generation, untouched = other.sample().ranks[0, 0].generation_active, children_of(installation, training.name)
    edit = '{"spec": {"objective": {"type": "NoSlowdown"}}}'
    installation.kubectl("patch", "pjob", other.name, "-n", NAMESPACE, "--type=merge", "-p", edit)
    other.wait_for_plan(generation + 1)
    assert children_of(installation, training.name) == untouched

    # One agent serves both: its death frees both, and both come back.
    agent = str(pod_of(installation, "agent")["metadata"]["uid"])
    kill_process(agent, "run")
    everybody = [gpu for each in own.values() for gpu in each]
    wait_until("all clocks are free", lambda: not any(map(SimulatedGpu.locked_range, everybody)), 5.0)
    wait_until("the agent is back", lambda: processes_of_pod(agent, "run"), 60)
    for job in jobs:
        job.wait_for_plan()

    # One job's end is none of the other's.
    iteration = training.sample().pipeline_iteration[0]
    other.delete()
    wait_until(
        "its clocks are free", lambda: not any(gpu.locked_range() for gpu in own[other.name]), RELEASED_WITHIN_SECONDS
    )
    training.wait_for("three iterations more", lambda sample: sample.pipeline_iteration[0] > iteration + 3)
    wait_until("clocks are set", lambda: any(gpu.locked_range() for gpu in own[training.name]), 10)
    assert children_of(installation, training.name) == untouched
    # The status follows Prometheus: the agent that came back is known as of its first page after its ranks' boundary.
    wait_until("it is well", lambda: conditions_of(installation, training.name)["Ready"]["status"] == "True", 30)
    assert [restarts(pod) for pod in training.pods()] == [0] * training.stages

    assert [clock_calls_of(gpu) for gpu in strangers] == before, "a stranger's clock was set or reset"
    assert strangers[-1].locked_range() == FOREIGN_LOCK
    assert strangers[0].status().kernels > kernels, "a stranger's training goes on"


def stranger(name: str, gpus: int, tag: str) -> dict[str, object]:
    """A pod with GPUs and without the label; with one it trains by itself, with several it waits."""
    rank = {names.ENV_RANK: "0", names.ENV_STAGES: "1", names.ENV_PIPELINES: "1", names.ENV_MICROBATCHES: "4"}
    variables = {**rank, "PERSEUS_PEER_ADDRESSES": "127.0.0.1:29400"}
    container = {
        "name": "trainer",
        "image": f"localhost/perseus-simulator:{tag}",
        "command": ["perseus-simulator", "train"] if gpus == 1 else ["sleep", "3600"],
        "env": [{"name": each, "value": value} for each, value in variables.items()],
        "resources": {"limits": {names.GPU_RESOURCE: gpus}},
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532},
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
