"""The driver where each kind of cluster has it: the agent finds it there, and serves the GPUs of a job that trains on.

The node's driver is the simulated library, laid out under the names and links that the driver's installer makes. GPUs
come to the kubelet from a device plugin that is no part of the release, as on a cluster with real ones; no container of
the agent is told where the library is but by the profile.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from perseus_api import names
from perseus_simulator.node import SimulatedNode
from product import SIMULATOR_STATE, Training, pod_of, restarts, small_training, wait_until
from test_agent_doctor import ask

from testbed import nvidia_runtime
from testbed.installation import CHART, RELEASE, SYSTEM_NAMESPACE, Installation
from tests.lanes import alone

pytestmark = pytest.mark.cluster
PLUGIN = "gpus"
LIBRARY = SIMULATOR_STATE.parent / "lib" / "libnvidia-ml.so.1"
# The same file, where every agent looks whatever its profile: beside the journal.
STATE = Path(names.JOURNAL_FOLDER) / "simulated-gpus"
GPU_LABEL = "nvidia.com/gpu.present"
VERSIONED = "libnvidia-ml.so.550.54.15"
PLACES = {
    "Host": Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
    "GpuOperator": Path("/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
    "Gke": Path("/home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.1"),
}
RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia",
}  # fmt: skip
SERVED_SECONDS = 60.0


@pytest.fixture(scope="module")
def training(installation: Installation) -> Iterator[Training]:
    """One job for all profiles."""
    with small_training(installation) as small:
        yield small


@pytest.fixture(scope="module")
def strangers_gpus(training: Training, installation: Installation) -> Iterator[Installation]:
    """The release without its simulator; the device plugin that took its place."""
    plugin = json.loads(
        installation.kubectl("get", "daemonset/perseus-simulator", "-n", SYSTEM_NAMESPACE, "-o", "json")
    )
    plugin["metadata"] = {"name": PLUGIN, "namespace": SYSTEM_NAMESPACE}
    for labels in (plugin["spec"]["selector"]["matchLabels"], plugin["spec"]["template"]["metadata"]["labels"]):
        labels["app.kubernetes.io/instance"] = PLUGIN
    STATE.unlink(missing_ok=True)
    os.link(SIMULATOR_STATE, STATE)
    # As GPU feature discovery does, on nodes with real ones.
    installation.kubectl("label", "node", "--all", f"{GPU_LABEL}=true", "--overwrite")
    try:
        upgrade(installation, wait=False)
        selector = f"{names.LABEL_COMPONENT}=simulator"
        pods = ("get", "pods", "-n", SYSTEM_NAMESPACE, "-l", selector, "-o", "name")
        wait_until("the release's own is gone", lambda: not installation.kubectl(*pods), 60)
        installation.kubectl("apply", "-f", "-", input_text=json.dumps(plugin))
        yield installation
    finally:
        installation.kubectl(
            "delete", "daemonset", PLUGIN, "-n", SYSTEM_NAMESPACE, "--ignore-not-found", "--cascade=foreground"
        )
        installation.kubectl("label", "node", "--all", f"{GPU_LABEL}-")
        installation.install_chart()
        STATE.unlink(missing_ok=True)


@pytest.mark.parametrize("profile", PLACES)
def test_the_agent_serves_gpus_by_the_library_of_the_node(
    profile: str, training: Training, strangers_gpus: Installation, gpus: SimulatedNode
) -> None:
    # What runs beside this on the machine would find a library at its usual place.
    with alone() if profile == "Host" else contextlib.nullcontext(), driver_at(PLACES[profile]):
        upgrade(strangers_gpus, f"agent.driver.profile={profile}", "agent.privileged=true")
        serves(strangers_gpus, training, gpus)


def test_the_agent_serves_gpus_by_nvidias_runtime_class(
    training: Training, strangers_gpus: Installation, gpus: SimulatedNode
) -> None:
    place = Path(f"{nvidia_runtime.DRIVER_ROOT}{nvidia_runtime.LIBRARY}")
    strangers_gpus.kubectl("apply", "-f", "-", input_text=json.dumps(RUNTIME_CLASS))
    try:
        with driver_at(place):
            upgrade(strangers_gpus, "agent.runtimeClassName=nvidia")
            serves(strangers_gpus, training, gpus)
    finally:
        strangers_gpus.kubectl("delete", "runtimeclass", "nvidia")


def test_an_agent_waits_for_a_driver_that_is_not_there_yet(
    training: Training, strangers_gpus: Installation, gpus: SimulatedNode
) -> None:
    upgrade(strangers_gpus, "agent.driver.profile=GpuOperator", "agent.privileged=true", wait=False)

    def says_why() -> bool:
        told = strangers_gpus.kubectl("get", "events", "-n", SYSTEM_NAMESPACE, "--field-selector=reason=FailedMount")
        return "driver-library" in told and not strangers_gpus.pods("agent")

    wait_until("the pod's events say what it waits for", says_why, 60)
    wait_until("clocks are free meanwhile", lambda: not any(gpu.locked_range() for gpu in gpus.gpus), 5)
    with driver_at(PLACES["GpuOperator"]):
        wait_until("it starts by itself", lambda: strangers_gpus.pods("agent"), 150)
        serves(strangers_gpus, training, gpus)


def serves(installation: Installation, training: Training, gpus: SimulatedNode) -> None:
    """Hold that the agent finds the driver and every GPU, and sets the clocks of the job that has been training."""
    installation.kubectl(
        "rollout", "status", "daemonset/perseus-agent", "-n", SYSTEM_NAMESPACE, f"--timeout={SERVED_SECONDS:.0f}s"
    )
    installation.forget_addresses()
    agent = json.dumps(pod_of(installation, "agent"))
    assert "perseus-simulator" not in agent, "nothing of the simulator is mounted"
    told = ask(installation)
    assert re.search(rf"^ok +NVML: driver \S+, {len(gpus.gpus)} GPUs$", told, re.MULTILINE), told
    assert "Nothing is wrong." in told
    own = [gpus.gpu(rank.gpu) for rank in training.wait_for_plan().ranks.values()]
    wait_until("every GPU is locked", lambda: all(gpu.locked_range() for gpu in own), SERVED_SECONDS)
    assert [restarts(pod) for pod in training.pods()] == [0] * training.stages


def upgrade(installation: Installation, *settings: str, wait: bool = True) -> None:
    """Give the release these settings, without its simulator."""
    own = (
        f"image.tag={installation.tag}", f"prometheus.url={installation.prometheus_url}",
        "agent.extraEnv[0].name=PERSEUS_SIMULATOR_STATE", f"agent.extraEnv[0].value={STATE}",
    )  # fmt: skip
    sets = [argument for each in (*own, *settings) for argument in ("--set", each)]
    waiting = ["--wait", "--timeout", "2m"] if wait else []
    installation.helm("upgrade", RELEASE, str(CHART), "--namespace", SYSTEM_NAMESPACE, *waiting, *sets)
    installation.forget_addresses()


@contextmanager
def driver_at(place: Path) -> Iterator[None]:
    """The simulated library at a place of the node, as a driver's installer leaves it; gone afterwards."""
    ours = place.with_name(VERSIONED)
    assert not place.exists() or is_ours(place), f"{place} belongs to a driver of this machine: no place for a test"
    made = [each for each in place.parents if not each.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(LIBRARY, ours)
    place.unlink(missing_ok=True)
    place.symlink_to(VERSIONED)
    try:
        yield
    finally:
        place.unlink()
        ours.unlink()
        for folder in made:
            folder.rmdir()


def is_ours(place: Path) -> bool:
    """Whether a run that was killed left it."""
    return place.resolve().name == VERSIONED and filecmp.cmp(place, LIBRARY, shallow=False)
