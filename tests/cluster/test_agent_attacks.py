"""Attacks on the agent by real pods on the real kubelet: refused and counted; a job that is served notices nothing.

What matters here and cannot be shown by processes alone: control groups as the kubelet and containerd make them, the
kubelet's own PodResources, and users and namespaces as pods really have them.
"""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from perseus_api import names
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Hello
from perseus_simulator.node import SimulatedNode
from product import NAMESPACE, Training, processes_of_pod, wait_until

from testbed.installation import AGENT_PORT, SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster

CLIENT = """
import os, socket, sys
from perseus_api.messages import Hello, Welcome, MAXIMUM_MESSAGE_BYTES
def hello(job, gpu, stage):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(20)
    peer.connect("/run/perseus/agent.sock")
    peer.send(Hello("default", job, gpu, 0, stage, 0, os.getpid()).pack())
    return Welcome.unpack(peer.recv(MAXIMUM_MESSAGE_BYTES)), peer
"""
CROWD = """
crowd = []
for _ in range(1000):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect("/run/perseus/agent.sock")  # blocks while the line is full
    crowd.append(peer)
print("connected", len(crowd), flush=True)
import time; time.sleep(5)
"""


def attack(job: str, gpu: str, stage: int) -> str:
    return f"{CLIENT}\nwelcome, _ = hello({job!r}, {gpu!r}, {stage})\nprint(welcome.verdict.name, welcome.reason)\n"


@pytest.fixture
def attacker(installation: Installation) -> Iterator[Any]:
    """Run a program as a pod with given labels and GPUs; return what it printed."""
    made = []

    def run(program: str, labels: dict[str, str] | None = None, gpus: int = 0, **variables: str) -> str:
        name = f"attacker-{len(made)}"
        made.append(name)
        container: dict[str, Any] = {
            "name": "attacker",
            "image": f"localhost/perseus-simulator:{installation.tag}",
            "imagePullPolicy": "IfNotPresent",
            "command": ["/opt/perseus/bin/python", "-c", program],
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "volumeMounts": [{"name": "stolen", "mountPath": names.SOCKET_FOLDER}],
            "resources": {"limits": {names.GPU_RESOURCE: gpus}} if gpus else {},
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [container],
                "volumes": [{"name": "stolen", "hostPath": {"path": names.SOCKET_FOLDER}}],
            },
        }
        installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=json.dumps(pod))
        installation.kubectl(
            "wait", "pod", name, "-n", NAMESPACE, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"
        )
        return installation.kubectl("logs", name, "-n", NAMESPACE).strip()

    yield run
    for name in made:
        installation.kubectl("delete", "pod", name, "-n", NAMESPACE, "--ignore-not-found", "--timeout=60s")


def refusals(installation: Installation) -> dict[str, float]:
    """What the agent has refused, by reason."""
    page = agent_page(installation, "metrics")
    return {each: float(count) for each, count in re.findall(r'refusals_total\{reason="(\w+)"\} (\S+)', page)}


def agent_page(installation: Installation, page: str) -> str:
    pod = installation.pods("agent")[0]
    address = installation.kubectl("get", "pod", pod, "-n", SYSTEM_NAMESPACE, "-o", "jsonpath={.status.podIP}")
    with urllib.request.urlopen(f"http://{address}:{AGENT_PORT}/{page}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


@pytest.fixture
def victim(training: Training) -> Iterator[dict[str, str]]:
    """A job that trains under its plan: its GPU and stage; it goes on and is followed whatever happened."""
    sample = training.wait_for("an iteration under the plan", lambda sample: sample.pipeline_iteration[0] > 4)
    before = sample.pipeline_iteration[0]
    yield {"gpu": sample.ranks[0, 0].gpu, "job": training.name}
    after = training.wait_for("training goes on", lambda sample: sample.pipeline_iteration[0] > before + 1)
    assert min(rank.generation_active for rank in after.ranks.values()) >= 1
    states = json.loads(agent_page(training.installation, "report"))["ranks"]
    assert {rank["state"] for rank in states if rank["job"] == training.name} == {"following"}


def test_a_pod_without_the_label(attacker: Any, victim: dict[str, str], installation: Installation) -> None:
    said = attacker(attack(victim["job"], victim["gpu"], 0))
    assert said == "REFUSED pod default/attacker-0 belongs to no PerseusJob"
    assert refusals(installation)["no_label"] >= 1


def test_a_pod_of_another_job(attacker: Any, victim: dict[str, str], installation: Installation) -> None:
    said = attacker(attack(victim["job"], victim["gpu"], 0), {names.LABEL_JOB: "other"})
    assert said == "REFUSED pod default/attacker-0 belongs to job other"


def test_a_pod_that_labels_itself_and_owns_no_gpu(attacker: Any, victim: dict[str, str]) -> None:
    said = attacker(attack(victim["job"], victim["gpu"], 0), {names.LABEL_JOB: victim["job"]})
    assert said == "REFUSED pod default/attacker-0 owns no GPU of this node"


def test_a_pod_that_labels_itself_and_wants_the_victims_gpu(
    attacker: Any, victim: dict[str, str], installation: Installation
) -> None:
    said = attacker(attack(victim["job"], victim["gpu"], 0), {names.LABEL_JOB: victim["job"]}, gpus=1)
    assert said.startswith("REFUSED pod default/attacker-0 does not own")
    assert refusals(installation)["foreign_gpu"] >= 1


def test_a_pod_that_says_to_be_another_stage(attacker: Any, victim: dict[str, str], installation: Installation) -> None:
    labels = {names.LABEL_JOB: victim["job"], names.LABEL_COMPLETION_INDEX: "3"}
    said = attacker(attack(victim["job"], "", 0), labels, 1, **{names.ENV_STAGES: "8"})
    assert said == "REFUSED pod default/attacker-0 is rank 3, not 0"
    assert refusals(installation)["other_rank"] >= 1


def test_a_thousand_connections_of_one_pod(attacker: Any, victim: dict[str, str], installation: Installation) -> None:
    assert attacker(CLIENT + CROWD) == "connected 1000"
    counted = refusals(installation)
    assert counted.get("too_many_of_pod", 0) + counted.get("too_many", 0) >= 700


def test_half_a_hello_and_none_at_all(attacker: Any, victim: dict[str, str], installation: Installation) -> None:
    program = f"""{CLIENT}
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
peer.settimeout(20)
peer.connect("/run/perseus/agent.sock")
peer.send(b"PRSH half")
print(Welcome.unpack(peer.recv(MAXIMUM_MESSAGE_BYTES)).reason)
silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
silent.settimeout(20)
silent.connect("/run/perseus/agent.sock")
silent.recv(MAXIMUM_MESSAGE_BYTES)
print("hung up")
"""
    said = attacker(program, {names.LABEL_JOB: victim["job"]})
    assert said.splitlines()[0].startswith("a hello has")
    assert said.splitlines()[1] == "hung up"


def test_a_process_of_the_host(victim: dict[str, str], installation: Installation) -> None:
    before = refusals(installation).get("unknown_peer", 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(names.SOCKET_PATH)
        peer.settimeout(10)
        try:
            peer.send(Hello(NAMESPACE, victim["job"], victim["gpu"], 0, 0, 0, 1).pack())
            peer.recv(MAXIMUM_MESSAGE_BYTES)
        except OSError:
            pass  # refused before it was read
    wait_until("the refusal is counted", lambda: refusals(installation)["unknown_peer"] > before, 10)


def test_a_pod_that_is_deleted_gives_its_clock_back_within_the_promise(
    training: Training, gpus: SimulatedNode, installation: Installation
) -> None:
    sample = training.wait_for("an iteration under the plan", lambda sample: sample.pipeline_iteration[0] > 4)
    gpu = gpus.gpu(sample.ranks[0, 2].gpu)
    wait_until("stage 2 is locked", lambda: gpu.locked_range() is not None, 10)
    pod = training.pod(2)
    uid = str(pod["metadata"]["uid"])
    installation.kubectl("delete", "pod", str(pod["metadata"]["name"]), "-n", NAMESPACE, "--wait=false")
    wait_until("its process is gone", lambda: not processes_of_pod(uid, "train"), 30)
    begin = time.monotonic()
    wait_until("its clock is free, or its successor's", lambda: gpu.locked_range() is None, 5)
    assert time.monotonic() - begin <= 5
