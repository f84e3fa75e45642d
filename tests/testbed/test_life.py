"""The cluster's life on an empty machine: it survives kills at any moment, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from machine import Machine, children

from testbed import binaries
from testbed.folders import DEFAULT_STATE, Folders
from testbed.node import PAUSE_IMAGE

pytestmark = pytest.mark.cluster
SERVICES = {
    "containerd", "coredns", "etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler",
    "kubelet",
}  # fmt: skip


def records(machine: Machine) -> dict[str, dict[str, int]]:
    """The recorded processes of the machine's testbed, by name."""
    folder = machine.root / DEFAULT_STATE.relative_to("/") / "processes"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def programs(machine: Machine) -> list[str]:
    """The names of the programs that run on the machine."""
    lines = [line.removeprefix("process ") for line in machine.traces() if line.startswith("process ")]
    return sorted(Path(line.split()[0]).name for line in lines)


def kubectl(machine: Machine, *arguments: str) -> str:
    program = binaries.locate(Folders.from_environment().cache)["kubectl"]
    return machine.run(str(program), f"--kubeconfig={DEFAULT_STATE}/kubeconfig", *arguments)


def start_pod(machine: Machine) -> None:
    kubectl(machine, "run", "lasting", f"--image={PAUSE_IMAGE}", "--image-pull-policy=Never")
    kubectl(machine, "wait", "--for=condition=Ready", "pod/lasting", "--timeout=30s")
    assert "pause" in programs(machine)


def kill_up_once_it_started(machine: Machine, name: str) -> None:
    """Begin ``up`` and kill it, as the kernel would, as soon as a process of the cluster is recorded."""
    up = machine.start("python3", "-m", "testbed", "up")
    deadline = time.monotonic() + 60
    while name not in records(machine):
        assert up.poll() is None, "up ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for child in children(up.pid):
        os.kill(child, signal.SIGKILL)
    up.communicate(timeout=30)


@pytest.mark.parametrize("name", ["containerd", "kubelet"])
def test_up_succeeds_after_an_up_that_was_killed(machine: Machine, name: str) -> None:
    machine.testbed("down")
    kill_up_once_it_started(machine, name)
    machine.testbed("up")
    kubectl(machine, "wait", "--for=condition=Ready", "node/node-1", "--timeout=30s")
    assert set(programs(machine)) >= SERVICES
    assert len(programs(machine)) == len(set(programs(machine))), "the killed run's processes still live"


def test_up_keeps_a_healthy_cluster_as_it_is(machine: Machine) -> None:
    machine.testbed("up")
    before = records(machine)
    assert set(before) == SERVICES
    machine.testbed("up")
    assert records(machine) == before


def test_up_replaces_a_cluster_that_lost_a_process_and_its_pods(machine: Machine) -> None:
    machine.testbed("up")
    start_pod(machine)
    for name in ("etcd", "containerd"):
        machine.run("kill", "-9", str(records(machine)[name]["pid"]))
    with pytest.raises(AssertionError):
        machine.testbed("status")
    machine.testbed("up")
    assert not {"pause", "containerd-shim-runc-v2"} & set(programs(machine))
    assert kubectl(machine, "get", "pods", "-o", "name") == ""


def test_down_leaves_no_trace_of_a_cluster_with_a_running_pod(machine: Machine) -> None:
    machine.testbed("down")
    before = machine.traces()
    machine.testbed("up")
    start_pod(machine)
    assert len(machine.traces()) > len(before) + 100
    machine.testbed("down")
    assert machine.traces() == before


def test_down_without_a_cluster_is_no_error(machine: Machine) -> None:
    machine.testbed("down")
    machine.testbed("down")
