"""What surprises in a real driver, held through the real pynvml: the agent's answers to it rest on these.

A lock that outlives its process, a counter that moves in steps and an init that answers "Unknown Error" have their
tests in test_device.py and test_nvml_answers.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from nvml_process import NvmlProcess, NvmlRefused
from perseus_simulator.node import KernelClient
from perseus_simulator.testing import NodeFactory, simulator_environment

NvmlStarter = Callable[..., NvmlProcess]

SET, RESET, CLOCK = "nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks", "nvmlDeviceGetClockInfo"
SM = 1
POWER_CAP = 0x4
POLICY_POWER, POLICY_THERMAL = 0, 1
FIELD_POWER_CAP, FIELD_ENERGY, FIELD_POWER, FIELD_HARDWARE_THERMAL, FIELD_UNKNOWN = 74, 83, 186, 270, 9999


def test_success_does_not_mean_held(simulated_node: NodeFactory, start_nvml: NvmlStarter) -> None:
    node = simulated_node()
    gpu, nvml = node.gpus[0], start_nvml(node)
    with KernelClient(node, gpu.uuid):
        gpu.inject(power_cap_watts=70.0)
        assert nvml.call(SET, gpu.uuid, 1410, 1410) is None
        assert nvml.call(CLOCK, gpu.uuid, SM) == 210
        assert nvml.call("nvmlDeviceGetCurrentClocksEventReasons", gpu.uuid) == POWER_CAP
        gpu.clear()
        assert nvml.call(CLOCK, gpu.uuid, SM) == 1410


def test_a_clock_comes_into_force_later_than_its_call_returns(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(clock_change_delay_seconds=600.0)
    gpu, nvml = node.gpus[0], start_nvml(node)
    with KernelClient(node, gpu.uuid):
        nvml.call(SET, gpu.uuid, 900, 900)
        assert gpu.locked_range() == (900, 900)
        assert nvml.call(CLOCK, gpu.uuid, SM) == 1410


def test_each_call_takes_its_latency_and_that_of_one_gpu_costs_the_other_none(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(gpus=2)
    slow, fast = node.gpus
    slow.inject(call_latency_seconds=0.2)
    waiting, other = start_nvml(node), start_nvml(node)
    assert waiting.process.stdin is not None
    waiting.process.stdin.write(f'["{SET}", "{slow.uuid}", [900, 900]]\n')
    waiting.process.stdin.flush()
    other.call(SET, fast.uuid, 810, 810)
    assert slow.clock_calls() == []  # still on its way, while the other GPU's call is done
    deadline = time.monotonic() + 20
    while not slow.clock_calls():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert time.monotonic_ns() - slow.clock_calls()[0].received_nanoseconds >= 200_000_000


def test_the_log_of_calls_tells_their_order_time_and_result(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(gpus=2)
    gpu, nvml = node.gpus[0], start_nvml(node)
    before = time.monotonic_ns()
    nvml.call(SET, gpu.uuid, 810, 900)
    gpu.inject(unknown=True)
    with pytest.raises(NvmlRefused):
        nvml.call(RESET, gpu.uuid)
    gpu.foreign_lock(600, 600)  # nobody's NVML call
    calls = gpu.clock_calls()
    assert [(call.sequence, call.clock_range, call.result) for call in calls] == [(0, (810, 900), 0), (1, None, 999)]
    assert before <= calls[0].received_nanoseconds <= calls[1].received_nanoseconds <= time.monotonic_ns()
    assert gpu.clock_calls(since=1) == calls[1:]
    assert node.gpus[1].clock_calls() == []


def test_throttle_time_is_counted_by_its_reason(simulated_node: NodeFactory, start_nvml: NvmlStarter) -> None:
    node = simulated_node(time_scale=100.0)
    gpu, nvml = node.gpus[0], start_nvml(node)

    def seconds(policy: int) -> float:
        return float(nvml.call("nvmlDeviceGetViolationStatus", gpu.uuid, policy)["violationTime"]) / 1e9

    with KernelClient(node, gpu.uuid) as client:
        client.run_fixed(1.0, 100.0)
        assert (seconds(POLICY_POWER), seconds(POLICY_THERMAL)) == (0, 0)
        gpu.inject(power_cap_watts=70.0)
        client.run_fixed(1.0, 100.0)
        capped = seconds(POLICY_POWER)
        assert capped >= 1.0
        gpu.inject(slowdown=1.2)
        client.run_fixed(1.0, 100.0)
        assert seconds(POLICY_THERMAL) >= 1.0
        gpu.clear()
        held = seconds(POLICY_THERMAL)
        client.run_fixed(1.0, 100.0)
        assert seconds(POLICY_THERMAL) == held
        assert seconds(POLICY_POWER) == pytest.approx(gpu.status().capped_seconds)
    with pytest.raises(NvmlRefused, match="Invalid Argument"):
        seconds(7)


def test_a_field_that_the_device_lacks_does_not_fail_the_others(simulated_node: NodeFactory) -> None:
    node = simulated_node(idle_watts=55.0)
    script = (
        "import pynvml as n\nn.nvmlInit()\nh = n.nvmlDeviceGetHandleByIndex(0)\n"
        f"asked = [{FIELD_UNKNOWN}, {FIELD_POWER}, {FIELD_POWER_CAP}, {FIELD_ENERGY}, {FIELD_HARDWARE_THERMAL}]\n"
        "for f in n.nvmlDeviceGetFieldValues(h, asked):\n"
        "    print(f.fieldId, f.nvmlReturn, f.value.uiVal if f.valueType == 1 else f.value.ullVal)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=simulator_environment(node), capture_output=True, text=True, check=True
    )
    unknown, power, capped, energy, hot = (line.split() for line in done.stdout.splitlines())
    assert unknown[:2] == [str(FIELD_UNKNOWN), "3"]
    assert power == [str(FIELD_POWER), "0", "55000"]
    assert capped == [str(FIELD_POWER_CAP), "0", "0"]
    assert energy[:2] == [str(FIELD_ENERGY), "0"]
    assert hot == [str(FIELD_HARDWARE_THERMAL), "0", "0"]


def test_a_virtual_gpu_and_one_without_mig_say_so(simulated_node: NodeFactory, start_nvml: NvmlStarter) -> None:
    node = simulated_node()
    gpu, nvml = node.gpus[0], start_nvml(node)
    assert nvml.call("nvmlDeviceGetVirtualizationMode", gpu.uuid) == 0
    gpu.inject(vgpu=True, no_mig=True)
    assert nvml.call("nvmlDeviceGetVirtualizationMode", gpu.uuid) == 2
    with pytest.raises(NvmlRefused, match="Not Supported"):
        nvml.call("nvmlDeviceGetMigMode", gpu.uuid)


def test_the_processes_of_a_gpu_are_named(simulated_node: NodeFactory, start_nvml: NvmlStarter) -> None:
    node = simulated_node()
    gpu, nvml = node.gpus[0], start_nvml(node)
    assert nvml.call("nvmlDeviceGetComputeRunningProcesses", gpu.uuid) == []
    with KernelClient(node, gpu.uuid):
        (process,) = nvml.call("nvmlDeviceGetComputeRunningProcesses", gpu.uuid)
    assert process["pid"] == os.getpid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop a capability")
def test_setting_clocks_takes_the_capability_and_not_the_user(simulated_node: NodeFactory) -> None:
    node = simulated_node(administrators_only=True)
    script = (
        "import pynvml as n\nn.nvmlInit()\nh = n.nvmlDeviceGetHandleByIndex(0)\n"
        "try:\n    n.nvmlDeviceSetGpuLockedClocks(h, 900, 900)\n    print('set')\n"
        "except n.NVMLError as e:\n    print(e)"
    )

    def answer(*prefix: str) -> str:
        command = [*prefix, sys.executable, "-c", script]
        environment = simulator_environment(node)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert answer() == "set"
    assert answer("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin") == "Insufficient Permissions"
