"""Each privilege of the agent, held to be needed by taking it away, and what it runs with as the kernel sees it.

The table in docs/security.md says what is told here. The simulated device asks the kernel for CAP_SYS_ADMIN before it
sets a clock, as the real driver does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_simulator.node import SimulatedNode
from product import Training, pod_of, processes_of_pod, wait_until
from test_agent_attacks import agent_page, refusals

from testbed.errors import TestbedError
from testbed.installation import SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster

CAP_SYS_ADMIN = 1 << 21
DAEMONSET = "daemonset/perseus-agent"


def status_of(pid: int) -> dict[str, str]:
    """A process's /proc/PID/status."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("command", ["run", "watchdog"])
def test_the_agent_has_one_capability_and_can_gain_none(installation: Installation, command: str) -> None:
    (pid,) = processes_of_pod(str(pod_of(installation, "agent")["metadata"]["uid"]), command)
    status = status_of(pid)
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[kind], 16) == CAP_SYS_ADMIN, kind
    assert int(status["CapInh"], 16) in (0, CAP_SYS_ADMIN)
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@pytest.mark.parametrize("path", ["/x", "/opt/perseus/x", "/etc/x", "/var/lib/kubelet/pod-resources/x"])
def test_the_agents_root_file_system_is_read_only(installation: Installation, path: str) -> None:
    pod = installation.pods("agent")[0]
    with pytest.raises(TestbedError, match="Read-only file system"):
        installation.kubectl("exec", "-n", SYSTEM_NAMESPACE, pod, "-c", "agent", "--", "touch", path)


@pytest.fixture
def changed(installation: Installation) -> Iterator[Any]:
    """Change the agent's pods by a JSON patch; they are as before afterwards."""
    undo: list[None] = []

    def change(*patch: dict[str, Any], becomes_ready: bool = True) -> None:
        undo.append(None)
        installation.kubectl("patch", DAEMONSET, "-n", SYSTEM_NAMESPACE, "--type=json", "-p", json.dumps(patch))
        if becomes_ready:
            roll(installation)
        else:
            installation.forget_addresses()

    yield change
    for _ in undo:
        installation.kubectl("rollout", "undo", DAEMONSET, "-n", SYSTEM_NAMESPACE)
        roll(installation)


def roll(installation: Installation) -> None:
    installation.kubectl("rollout", "status", DAEMONSET, "-n", SYSTEM_NAMESPACE, "--timeout=90s")
    installation.forget_addresses()


def remove(*path: str) -> dict[str, Any]:
    return {"op": "remove", "path": "/".join(("/spec/template/spec", *path))}


def test_without_sys_admin_no_clock_is_set_and_the_reason_is_told(
    training: Training, changed: Any, installation: Installation, gpus: SimulatedNode
) -> None:
    changed(*(remove("containers", str(index), "securityContext", "capabilities", "add") for index in range(2)))
    wait_until("the refusal is told", lambda: "no_permission" in {rank["reason"] for rank in ranks(installation)}, 90)
    assert not any(gpu.locked_range() for gpu in gpus.gpus)
    assert not any(pod["status"].get("phase") == "Failed" for pod in training.pods()), "training goes on"


def test_without_the_hosts_process_ids_nobody_is_known(
    training: Training, changed: Any, installation: Installation, gpus: SimulatedNode
) -> None:
    changed(remove("hostPID"))
    wait_until("everybody is refused", lambda: refusals(installation).get("unknown_peer", 0) >= 1, 90)
    assert ranks(installation) == []
    assert not any(gpu.locked_range() for gpu in gpus.gpus)


def test_without_the_kubelets_folder_nobody_owns_a_gpu(
    training: Training, changed: Any, installation: Installation, gpus: SimulatedNode
) -> None:
    daemonset = json.loads(installation.kubectl("get", DAEMONSET, "-n", SYSTEM_NAMESPACE, "-o", "json"))
    mounts = daemonset["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    index = next(index for index, mount in enumerate(mounts) if mount["name"] == "pod-resources")
    changed(remove("containers", "0", "volumeMounts", str(index)))
    wait_until("everybody is refused", lambda: refusals(installation).get("kubelet_unavailable", 0) >= 1, 90)
    assert not any(gpu.locked_range() for gpu in gpus.gpus)


AS_ANOTHER_USER = tuple(
    {"op": "replace", "path": f"/spec/template/spec/containers/{container}/securityContext/{key}", "value": 65532}
    for container in range(2)
    for key in ("runAsUser", "runAsGroup")
)


@pytest.fixture
def give_folders() -> Iterator[Callable[[int], None]]:
    """Give the journal's and the socket's folder to a user; to root again afterwards."""

    def give(user: int) -> None:
        for folder in (Path(names.JOURNAL_FOLDER), Path(names.SOCKET_FOLDER)):
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, user, user)

    yield give
    give(0)


def test_as_another_user_it_needs_folders_of_its_own_and_then_has_no_capability_and_no_kubelet(
    training: Training,
    changed: Any,
    give_folders: Callable[[int], None],
    installation: Installation,
    gpus: SimulatedNode,
) -> None:
    changed(*AS_ANOTHER_USER, becomes_ready=False)

    def says_why() -> bool:
        logs = ("logs", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/component=agent", "-c", "agent", "--tail=-1")
        try:
            return "Permission denied: '/var/lib/perseus/holder'" in installation.kubectl(*logs)
        except TestbedError:
            return False  # The container has not started yet.

    wait_until("it may not write its journal", says_why, 90)
    give_folders(65532)
    roll(installation)
    (pid,) = processes_of_pod(str(pod_of(installation, "agent")["metadata"]["uid"]), "run")
    status = status_of(pid)
    assert (int(status["CapPrm"], 16), int(status["CapEff"], 16)) == (0, 0), "capabilities are given to user 0"
    wait_until("everybody is refused", lambda: refusals(installation).get("kubelet_unavailable", 0) >= 1, 90)
    assert not any(gpu.locked_range() for gpu in gpus.gpus)
    assert not any(pod["status"].get("phase") == "Failed" for pod in training.pods()), "training goes on"


def ranks(installation: Installation) -> list[dict[str, Any]]:
    """The agent's report."""
    found: list[dict[str, Any]] = json.loads(agent_page(installation, "report"))["ranks"]
    return found
