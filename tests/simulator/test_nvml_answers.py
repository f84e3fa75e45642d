"""What NVML's functions answer at their edges, through the real pynvml in a process that stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nvml_process import NvmlProcess, NvmlRefused
from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient
from perseus_simulator.testing import NodeFactory

NvmlStarter = Callable[..., NvmlProcess]

SET, RESET = "nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"
ENERGY, CLOCK = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetClockInfo"
SM = 1
IDLE, POWER_CAP, SOFTWARE_THERMAL, HARDWARE_THERMAL = 0x1, 0x4, 0x20, 0x40


def refusal(nvml: NvmlProcess, *call: object) -> str:
    with pytest.raises(NvmlRefused) as refused:
        nvml.call(*call)
    return refused.value.error


def test_nothing_answers_before_init_or_after_the_last_shutdown(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    nvml = start_nvml(simulated_node(), init=False)
    for call in ("nvmlDeviceGetCount", "nvmlSystemGetDriverVersion", "nvmlShutdown"):
        assert refusal(nvml, call) == "NVMLError_Uninitialized"
    nvml.call("nvmlInit")
    nvml.call("nvmlInit")
    nvml.call("nvmlShutdown")
    assert nvml.call("nvmlDeviceGetCount") == 1
    nvml.call("nvmlShutdown")
    assert refusal(nvml, "nvmlDeviceGetCount") == "NVMLError_Uninitialized"


def test_a_handle_is_of_its_uuid_and_an_unknown_one_is_refused(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(gpus=3)
    nvml = start_nvml(node)
    for gpu in node.gpus:
        assert nvml.call("nvmlDeviceGetHandleByIndex", None, gpu.index) == gpu.uuid
        assert nvml.call("nvmlDeviceGetIndex", gpu.uuid) == gpu.index
    assert refusal(nvml, "nvmlDeviceGetHandleByIndex", None, 3) == "NVMLError_InvalidArgument"
    assert refusal(nvml, "nvmlDeviceGetHandleByUUID", None, "GPU-none") == "NVMLError_NotFound"


def test_a_symbol_that_the_library_lacks_is_function_not_found(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node()
    assert refusal(start_nvml(node), "nvmlDeviceGetFanSpeed", node.gpus[0].uuid) == "NVMLError_FunctionNotFound"


@pytest.mark.parametrize("kind", ["absent", "empty", "short", "long", "other"])
def test_a_missing_or_torn_state_is_driver_not_loaded(
    simulated_node: NodeFactory, start_nvml: NvmlStarter, tmp_path: Path, kind: str
) -> None:
    node = simulated_node()
    content = node.path.read_bytes()
    torn = {"empty": b"", "short": content[:-1], "long": content + b"\0", "other": b"x" * len(content)}
    if kind in torn:
        (tmp_path / kind).write_bytes(torn[kind])
    nvml = start_nvml(node, init=False, PERSEUS_SIMULATOR_STATE=str(tmp_path / kind))
    assert refusal(nvml, "nvmlInit") == "NVMLError_DriverNotLoaded"


def test_the_clock_held_follows_the_lock_and_snaps_down_to_a_step(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(gpus=2)
    gpu, other = node.gpus
    nvml = start_nvml(node)
    with KernelClient(node, gpu.uuid), KernelClient(node, other.uuid):
        for requested, held in ((1410, 1410), (1005, 1005), (1004, 990), (5000, 1410), (1, 210)):
            nvml.call(SET, gpu.uuid, requested, requested)
            assert nvml.call(CLOCK, gpu.uuid, SM) == held
            assert gpu.locked_range() == (requested, requested)
        assert other.locked_range() is None
        assert nvml.call(CLOCK, other.uuid, SM) == 1410
        nvml.call(RESET, gpu.uuid)
        assert nvml.call(CLOCK, gpu.uuid, SM) == 1410


def test_a_backward_or_empty_range_is_refused_and_changes_nothing(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node()
    gpu, nvml = node.gpus[0], start_nvml(node)
    nvml.call(SET, gpu.uuid, 900, 900)
    for lowest, highest in ((1200, 900), (0, 0), (1, 100_001)):
        assert refusal(nvml, SET, gpu.uuid, lowest, highest) == "NVMLError_InvalidArgument"
    assert gpu.locked_range() == (900, 900)


@pytest.mark.parametrize("fault", ["no_permission", "not_supported", "unknown", "lost"])
def test_a_refused_reset_keeps_the_lock_in_force(
    simulated_node: NodeFactory, start_nvml: NvmlStarter, fault: str
) -> None:
    node = simulated_node()
    gpu, nvml = node.gpus[0], start_nvml(node)
    nvml.call(SET, gpu.uuid, 900, 900)
    gpu.inject(**{fault: True})
    refusal(nvml, RESET, gpu.uuid)
    refusal(nvml, SET, gpu.uuid, 1005, 1005)
    assert gpu.locked_range() == (900, 900)
    assert (gpu.calls["set_locked_clocks"], gpu.calls["reset_locked_clocks"]) == (1, 0)
    gpu.clear()
    nvml.call(RESET, gpu.uuid)
    assert gpu.locked_range() is None
    assert gpu.calls["reset_locked_clocks"] == 1


def test_memory_clocks_cannot_be_locked(simulated_node: NodeFactory, start_nvml: NvmlStarter) -> None:
    node = simulated_node()
    nvml = start_nvml(node)
    assert refusal(nvml, "nvmlDeviceSetMemoryLockedClocks", node.gpus[0].uuid, 1, 2) == "NVMLError_NotSupported"


def test_locks_of_several_processes_are_one_lock_and_the_last_call_holds(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node()
    gpu = node.gpus[0]
    one, two = start_nvml(node), start_nvml(node)
    one.call(SET, gpu.uuid, 900, 900)
    gpu.foreign_lock(600, 1200)
    assert gpu.locked_range() == (600, 1200)
    two.call(SET, gpu.uuid, 810, 810)
    assert gpu.locked_range() == (810, 810)
    gpu.foreign_reset()
    assert gpu.locked_range() is None
    assert (gpu.calls["set_locked_clocks"], gpu.calls["reset_locked_clocks"]) == (2, 0)  # NVML's, not somebody else's


def test_power_and_event_reasons_tell_idle_blocked_hot_and_capped_apart(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(idle_watts=55.0)
    gpu, nvml = node.gpus[0], start_nvml(node)

    def seen() -> tuple[int, int]:
        names = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksEventReasons")
        watts, reasons = (nvml.call(name, gpu.uuid) for name in names)
        assert nvml.call("nvmlDeviceGetCurrentClocksThrottleReasons", gpu.uuid) == reasons
        return watts, reasons

    assert seen() == (55_000, IDLE)
    with KernelClient(node, gpu.uuid):
        assert seen() == (80_000, 0)
        gpu.inject(slowdown=1.2)
        assert seen()[1] == SOFTWARE_THERMAL | HARDWARE_THERMAL
        gpu.inject(power_cap_watts=70.0)  # even the blocked device draws more
        assert seen()[1] == POWER_CAP
        assert nvml.call("nvmlDeviceGetEnforcedPowerLimit", gpu.uuid) == 70_000
    gpu.clear()
    assert seen() == (55_000, IDLE)


def test_the_energy_counter_stands_still_between_refreshes(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(counter_refresh_seconds=600.0)
    gpu, nvml = node.gpus[0], start_nvml(node)
    with KernelClient(node, gpu.uuid) as client:
        client.run(0, Instruction.FORWARD)
    assert gpu.energy_joules > 10
    assert nvml.call(ENERGY, gpu.uuid) == 0


def test_the_energy_counter_shows_the_energy_at_its_refreshes(
    simulated_node: NodeFactory, start_nvml: NvmlStarter
) -> None:
    node = simulated_node(counter_refresh_seconds=30.0, time_scale=1000.0, idle_watts=55.0)
    gpu, nvml = node.gpus[0], start_nvml(node)
    readings: list[int] = []
    while len(set(readings)) < 4:
        readings.append(nvml.call(ENERGY, gpu.uuid))
        assert readings[-1] <= 1000 * gpu.energy_joules
    assert readings == sorted(readings)
    for reading in readings:  # an idle device: whole refreshes of 30 s x 55 W
        refreshes = reading / (30.0 * 55.0 * 1000)
        assert refreshes == pytest.approx(round(refreshes), abs=1e-3)
    assert gpu.calls["energy_reads"] == len(readings)
