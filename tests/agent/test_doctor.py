"""The doctor: names what is wrong on a node in a sentence with its remedy, exits accordingly, and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_process import AgentProcess, Kubelet, Trainer, eventually, make_plan
from perseus_daemonset.doctor.findings import Level
from perseus_daemonset.doctor.gpus import look_at_capability
from perseus_daemonset.doctor.node import look_at_processes
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment

UUID = "GPU-0b0a1f6e-6c3e-4d0e-9f6b-2f4f8d1f0c11"
Doctor = Callable[..., "Told"]


class Told:
    """What the doctor said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert "Traceback" not in done.stderr + done.stdout
        self.status = done.returncode
        self.lines = done.stdout.splitlines()

    def about(self, level: Level, *words: str) -> str:
        """The one line of a level that holds all the words."""
        (found,) = [line for line in self.lines if line.startswith(level.value) and all(word in line for word in words)]
        return found

    @property
    def wrong(self) -> list[str]:
        """What is wrong, the API left out: these tests have none."""
        return [line for line in self.lines if line.startswith(Level.WRONG.value) and " API" not in line]


@pytest.fixture
def doctor(node: SimulatedNode, kubelet: Kubelet, tmp_path: Path) -> Doctor:
    """Run the command on a node that is well; a test spoils it before."""
    (tmp_path / "journal").mkdir(exist_ok=True)

    def run(**variables: str) -> Told:
        environment = {
            **simulator_environment(node),
            "PERSEUS_JOURNAL_FOLDER": str(tmp_path / "journal"),
            "PERSEUS_SOCKET": str(tmp_path / "agent.sock"),
            "PERSEUS_POD_RESOURCES_FOLDER": str(tmp_path),
            **variables,
        }
        command = [sys.executable, "-m", "perseus_daemonset.main", "doctor"]
        return Told(subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60))

    return run


def test_a_node_that_is_well(doctor: Doctor, node: SimulatedNode) -> None:
    told = doctor()
    assert told.wrong == []
    assert "3 GPUs" in told.about(Level.WELL, "NVML")
    for gpu in node.gpus:
        assert "clocks from 210 to 1410 MHz" in told.about(Level.WELL, gpu.uuid, "clocks")
        assert gpu.calls["set_locked_clocks"] == gpu.calls["reset_locked_clocks"] == gpu.calls["refused"] == 0
    told.about(Level.WELL, "kubelet", "2 GPUs")
    told.about(Level.NOTE, "socket", "no agent serves")
    assert told.status == 1, "the API's variables are not set"


def test_the_energy_counters_period_is_measured(doctor: Doctor, node: SimulatedNode) -> None:
    line = doctor().about(Level.WELL, node.gpus[0].uuid, "energy counter moves every")
    assert 80 <= int(line.split("every ")[1].split()[0]) <= 125


def test_a_lost_gpu_is_named_and_the_others_are_looked_at(doctor: Doctor, node: SimulatedNode) -> None:
    node.gpus[1].inject(lost=True)
    told = doctor()
    told.about(Level.WELL, node.gpus[0].uuid, "clocks from")
    assert "1 of 3 GPUs are lost" in told.about(Level.WRONG, "NVML")


@pytest.mark.parametrize(("fault", "words"), [("mig", "in MIG mode"), ("vgpu", "a vGPU")])
def test_a_shared_gpu_is_told_to_be_left_alone(doctor: Doctor, node: SimulatedNode, fault: str, words: str) -> None:
    node.gpus[2].inject(**{fault: True})
    assert words in doctor().about(Level.NOTE, node.gpus[2].uuid)


def test_an_unknown_error_on_init_is_explained(doctor: Doctor, node: SimulatedNode) -> None:
    node.inject_init_unknown(True)
    assert "Delete this pod" in doctor().about(Level.WRONG, "NVML", "Unknown Error")


def test_a_missing_driver_is_explained(doctor: Doctor) -> None:
    assert "agent.nodeSelector" in doctor(PERSEUS_SIMULATOR_STATE="/nowhere").about(Level.WRONG, "NVML")


def test_a_missing_library_is_explained(doctor: Doctor, tmp_path: Path) -> None:
    told = doctor(LD_LIBRARY_PATH=str(tmp_path)).about(Level.WRONG, "NVML")
    assert "agent.runtimeClassName" in told
    assert "agent.driver.profile" in told


def test_a_kubelet_elsewhere_is_explained(doctor: Doctor, kubelet: Kubelet) -> None:
    kubelet.stop()
    assert "agent.kubeletFolder" in doctor().about(Level.WRONG, "kubelet", "UNAVAILABLE")


def test_devices_that_are_not_served_are_told(doctor: Doctor, kubelet: Kubelet, node: SimulatedNode) -> None:
    kubelet.devices[0] = ("gpt-0", "nvidia.com/gpu", f"{node.gpus[0].uuid}::1")
    told = doctor()
    assert "1 are parts of GPUs" in told.about(Level.NOTE, "kubelet")
    kubelet.devices[0] = ("gpt-0", "nvidia.com/gpu", "odd")
    assert "not understood: odd" in doctor().about(Level.NOTE, "kubelet")


def test_a_missing_journal_folder_is_explained(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "journal").rmdir()
    assert "mounts it from the host" in doctor().about(Level.WRONG, "journal")
    assert not (tmp_path / "journal").exists(), "it makes nothing"


def test_a_lock_without_an_agent_is_told_and_not_touched(
    doctor: Doctor, agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    doctor().about(Level.WELL, "journal", "an agent runs and holds 1 GPUs locked")
    agent.kill()
    assert "perseus-agent release" in doctor().about(Level.WRONG, "journal", node.gpus[0].uuid)
    assert node.gpus[0].locked_range() == (810, 810)


def test_a_damaged_journal_is_told_and_not_touched(doctor: Doctor, tmp_path: Path) -> None:
    entry = tmp_path / "journal" / "#1.lock.json"
    entry.write_bytes(b"\0")
    doctor().about(Level.WRONG, "journal", "damaged")
    assert entry.read_bytes() == b"\0"


def test_a_wrong_socket_path_is_explained(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("")
    assert "is no socket" in doctor().about(Level.WRONG, "socket")
    assert "does not exist" in doctor(PERSEUS_SOCKET="/nowhere/agent.sock").about(Level.WRONG, "socket")


@pytest.mark.parametrize(("effective", "level"), [("00000000a80425fb", Level.WRONG), ("0000000000200000", Level.WELL)])
def test_the_permission_is_read_and_not_tried(tmp_path: Path, effective: str, level: Level) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapEff:\t{effective}\n")
    assert look_at_capability(tmp_path / "status").level is level


@pytest.mark.parametrize(
    ("others", "level"), [(["9d8c7b6a-0000-4000-8000-0123456789ab"], Level.WELL), ([], Level.WRONG)]
)
def test_a_pod_without_the_hosts_process_ids_is_told(tmp_path: Path, others: list[str], level: Level) -> None:
    for name, uid in (
        ("self", UUID[4:]),
        ("1", UUID[4:]),
        *((str(index + 5), uid) for index, uid in enumerate(others)),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup").write_text(f"0::/kubepods/burstable/pod{uid}/c\n")
    (finding, _) = look_at_processes(tmp_path)
    assert finding.level is level
    assert os.listdir(tmp_path)
