"""Where the driver's library comes from: what a profile mounts, what is refused, and that NVML's binding loads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from perseus_simulator.library import CHECKOUT_LIBRARY
from perseus_simulator.testing import NodeFactory

from tests.chart.rendering import CHART, ROOT, Document, helm, pods, render

pytestmark = pytest.mark.cluster

PLACES = {
    "Host": "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "GpuOperator": "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "Gke": "/home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.1",
}
ELSEWHERE = "/run/nvidia/driver/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1"
# What kubelet and container runtime do: the file of the node, alone and read-only, at its place in the container.
MOUNTED = """
mount -t tmpfs none /run
mkdir -p "$(dirname "$2")"
touch "$2"
mount --bind "$1" "$2"
mount -o remount,bind,ro "$2"
shift 2
exec "$@"
"""


def agent_spec(*settings: str) -> Document:
    spec: Document = pods(render(*settings))["DaemonSet/perseus-agent"]["spec"]
    return spec


def settings_of(profile: str) -> list[str]:
    return [f"agent.driver.profile={profile}", "agent.privileged=true"]


def environment_of(container: Document) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def mount_of(container: Document) -> Document:
    (found,) = [each for each in container["volumeMounts"] if each["name"] == "driver-library"]
    return dict(found)


@pytest.mark.parametrize("profile", PLACES)
def test_a_profile_mounts_one_file_read_only_where_both_containers_look_for_it(profile: str) -> None:
    spec = agent_spec(*settings_of(profile))
    (volume,) = [each for each in spec["volumes"] if each["name"] == "driver-library"]
    assert volume["hostPath"] == {"path": PLACES[profile], "type": "File"}
    assert [each["name"] for each in spec["containers"]] == ["agent", "watchdog"]
    for container in spec["containers"]:
        mount, environment = mount_of(container), environment_of(container)
        assert mount["readOnly"] is True
        assert mount["mountPath"] == f"{environment['LD_LIBRARY_PATH']}/libnvidia-ml.so.1"
        assert "NVIDIA_VISIBLE_DEVICES" not in environment, "NVIDIA's runtime would bring a second library"
        assert container["securityContext"]["privileged"] is True


def test_with_nvidias_runtime_nothing_of_the_driver_is_mounted_and_nothing_is_privileged() -> None:
    spec = agent_spec()
    assert not [each for each in spec["volumes"] if each["name"] == "driver-library"]
    for container in spec["containers"]:
        environment = environment_of(container)
        assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
        assert "LD_LIBRARY_PATH" not in environment
        assert "privileged" not in container["securityContext"]


def test_values_of_a_release_before_there_were_profiles_are_still_rendered() -> None:
    assert "driver-library" not in str(agent_spec("agent.driver=null"))


def test_a_library_elsewhere_can_be_named() -> None:
    spec = agent_spec(*settings_of("GpuOperator"), f"agent.driver.library={ELSEWHERE}")
    (volume,) = [each for each in spec["volumes"] if each["name"] == "driver-library"]
    assert volume["hostPath"]["path"] == ELSEWHERE


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["agent.driver.profile=Gke"], "set agent.privileged=true"),
        ([*settings_of("Host"), "agent.runtimeClassName=nvidia"], "unset agent.runtimeClassName"),
        ([*settings_of("Host"), "simulator.enabled=true"], "unset one of them"),
        ([f"agent.driver.library={ELSEWHERE}"], "set the profile to Host, GpuOperator or Gke"),
        ([*settings_of("Windows")], "agent/driver/profile"),
        ([*settings_of("Host"), "agent.driver.library=/usr/lib"], "agent/driver/library"),
        ([*settings_of("Host"), "agent.driver.root=/"], "root"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(settings: list[str], sentence: str) -> None:
    sets = [argument for each in settings for argument in ("--set", each)]
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", *sets)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_the_documented_values_for_google_kubernetes_engine_choose_its_nodes(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(agent:\n.*?)```", (ROOT / "docs" / "install.md").read_text(), re.DOTALL)
    values = tmp_path / "values.yaml"
    values.write_text(block)
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", "--values", str(values))
    assert done.returncode == 0, done.stderr
    spec = pods([each for each in yaml.safe_load_all(done.stdout) if each])["DaemonSet/perseus-agent"]["spec"]
    assert PLACES["Gke"] in str(spec["volumes"])
    assert "nodeSelector" not in spec
    assert "gke-accelerator" in str(spec["affinity"])
    assert "priorityClassName" not in spec


@pytest.mark.parametrize("profile", PLACES)
def test_nvml_is_loaded_from_what_a_profile_mounts(profile: str, simulated_node: NodeFactory, tmp_path: Path) -> None:
    container = agent_spec(*settings_of(profile))["containers"][0]
    on_node = tmp_path / "node" / PLACES[profile].lstrip("/")
    on_node.parent.mkdir(parents=True)
    shutil.copy(CHECKOUT_LIBRARY, on_node.with_name("libnvidia-ml.so.550.54.15"))
    on_node.symlink_to("libnvidia-ml.so.550.54.15")  # as the driver's installer does
    (on_node.parent / "libc.so.6").write_text("another system's, which would end every program that loads it")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"},
        **environment_of(container),
        "PERSEUS_SIMULATOR_STATE": str(simulated_node(3).path),
    }
    doctor = [sys.executable, "-m", "perseus_daemonset.main", "doctor"]
    mounted = ["unshare", "--mount", "sh", "-ec", MOUNTED, "sh", str(on_node), mount_of(container)["mountPath"]]

    done = subprocess.run([*mounted, *doctor], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert re.search(r"^ok +NVML: driver \S+, 3 GPUs$", done.stdout, re.MULTILINE), done.stdout + done.stderr

    done = subprocess.run(doctor, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert "agent.driver.profile" in done.stdout, "without the mount there is no library, and it says what to set"
