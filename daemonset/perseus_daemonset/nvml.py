"""NVML through pynvml, and the only module that imports it.

Locks outlive the process that set them and cannot be read back (NVML API reference, nvmlDeviceSetGpuLockedClocks):
whoever uses this keeps a journal. SUCCESS means that a clock was requested, not that it is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from perseus_daemonset.hardware import HardwareError, Reading

# Bits of nvmlDeviceGetCurrentClocksEventReasons by the names of the API reference.
_REASONS = {
    0x0000000000000001: "gpu_idle",
    0x0000000000000002: "applications_clocks_setting",
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "sw_thermal_slowdown",
    0x0000000000000040: "hw_thermal_slowdown",
    0x0000000000000080: "hw_power_brake_slowdown",
    0x0000000000000100: "display_clock_setting",
}
_CODES = {
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not_supported",
    pynvml.NVML_ERROR_GPU_IS_LOST: "gpu_is_lost",
    pynvml.NVML_ERROR_NOT_FOUND: "not_found",
    pynvml.NVML_ERROR_UNKNOWN: "unknown",
    pynvml.NVML_ERROR_UNINITIALIZED: "uninitialized",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "driver_not_loaded",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "library_not_found",
    pynvml.NVML_ERROR_INVALID_ARGUMENT: "invalid_argument",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "function_not_found",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "lib_rm_mismatch",
    pynvml.NVML_ERROR_TIMEOUT: "timeout",
    pynvml.NVML_ERROR_IN_USE: "in_use",
    pynvml.NVML_ERROR_IRQ_ISSUE: "irq_issue",
}
# Not this device, or not this driver.
_UNKNOWN_TO_DEVICE = frozenset({"not_supported", "function_not_found", "invalid_argument"})
_VIOLATIONS = {
    pynvml.NVML_PERF_POLICY_POWER: "power",
    pynvml.NVML_PERF_POLICY_THERMAL: "thermal",
    pynvml.NVML_PERF_POLICY_SYNC_BOOST: "sync_boost",
    pynvml.NVML_PERF_POLICY_BOARD_LIMIT: "board_limit",
    pynvml.NVML_PERF_POLICY_LOW_UTILIZATION: "low_utilization",
    pynvml.NVML_PERF_POLICY_RELIABILITY: "reliability",
}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise _translation(what, error) from None


def _translation(what: str, error: pynvml.NVMLError) -> HardwareError:
    return HardwareError(_CODES.get(error.value, "other"), f"{what}: {error}")


def _reasons(bits: int) -> tuple[str, ...]:
    """Names of the bits; one that this version does not know is told by its number, and is a reason nevertheless."""
    return tuple(_REASONS.get(1 << bit, f"bit_{bit}") for bit in range(64) if bits >> bit & 1)


class NvmlGpu:
    """A GPU behind an NVML handle."""

    def __init__(self, uuid: str, handle: object) -> None:
        """Wrap a handle; see `Nvml.gpu`."""
        self.uuid = uuid
        self._handle = handle

    def lock(self, megahertz: int) -> None:
        """Request that the SM clock be held at a value.

        Raises:
            HardwareError: NVML refused.
        """
        try:  # not `_translated`, whose text and generator would cost as much as the call that hurries
            pynvml.nvmlDeviceSetGpuLockedClocks(self._handle, megahertz, megahertz)
        except pynvml.NVMLError as error:
            raise _translation(f"locking {self.uuid} at {megahertz} MHz", error) from None

    def reset(self) -> None:
        """Give the clock back to the device's own control.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"unlocking {self.uuid}"):
            pynvml.nvmlDeviceResetGpuLockedClocks(self._handle)

    def energy_joules(self) -> float:
        """Return the energy counter; NVML counts millijoules and refreshes about every 100 ms.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"reading the energy of {self.uuid}"):
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def read(self) -> Reading:
        """Return what the device reports now.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"reading {self.uuid}"):
            bits = pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
            return Reading(
                clock_megahertz=pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM),
                power_watts=pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
                temperature_celsius=pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU),
                event_reasons=_reasons(bits),
            )

    def name(self) -> str:
        """Return the model's name.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"reading the name of {self.uuid}"):
            return str(pynvml.nvmlDeviceGetName(self._handle))

    def clocks_megahertz(self) -> list[int]:
        """Return the SM clocks that the device offers at its highest memory clock, falling.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"listing the clocks of {self.uuid}"):
            memory = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(self._handle))
            return sorted(pynvml.nvmlDeviceGetSupportedGraphicsClocks(self._handle, memory), reverse=True)

    def throttle_seconds(self) -> dict[str, float]:
        """Return for how long the device was held below its clocks, by cause; NVML counts nanoseconds.

        What this device does not count is left out.

        Raises:
            HardwareError: NVML refused for another reason.
        """
        found = {}
        for policy, name in _VIOLATIONS.items():
            try:
                with _translated(f"reading the throttle time of {self.uuid}"):
                    found[name] = pynvml.nvmlDeviceGetViolationStatus(self._handle, policy).violationTime / 1e9
            except HardwareError as error:
                if error.code not in _UNKNOWN_TO_DEVICE:
                    raise
        return found

    def sharing(self) -> str:
        """Return how the GPU is shared (``mig``, ``vgpu`` or ``mps``), empty if it is whole.

        A GPU that does not know one of these is not shared by it.

        Raises:
            HardwareError: NVML refused for another reason.
        """
        for name, is_so in (("mig", self._in_mig_mode), ("vgpu", self._virtual), ("mps", self._has_mps_clients)):
            try:
                with _translated(f"reading how {self.uuid} is shared"):
                    if is_so():
                        return name
            except HardwareError as error:
                if error.code not in _UNKNOWN_TO_DEVICE:
                    raise
        return ""

    def _in_mig_mode(self) -> bool:
        return bool(pynvml.nvmlDeviceGetMigMode(self._handle)[0])

    def _virtual(self) -> bool:
        # A GPU handed through to one virtual machine is whole; vGPU, on either side, is not.
        mode = pynvml.nvmlDeviceGetVirtualizationMode(self._handle)
        return mode not in (pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE, pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH)

    def _has_mps_clients(self) -> bool:
        return bool(pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3(self._handle))

    def model(self) -> str:
        """Return the model's name, such as ``NVIDIA A100-SXM4-80GB``.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"reading the model of {self.uuid}"):
            return str(pynvml.nvmlDeviceGetName(self._handle))

    def supported_clocks(self) -> tuple[int, ...]:
        """Return the SM clocks that can be locked in MHz, falling: those of the highest memory clock.

        Raises:
            HardwareError: NVML refused.
        """
        with _translated(f"reading the clocks of {self.uuid}"):
            memory = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(self._handle))
            clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(self._handle, memory)
        return tuple(sorted(set(clocks), reverse=True))


class Nvml:
    """NVML of this node."""

    def __init__(self) -> None:
        """Initialise NVML.

        Raises:
            HardwareError: the driver does not answer; code ``unknown`` means that only a new container helps.
        """
        with _translated("initialising NVML"):
            pynvml.nvmlInit()

    def gpu(self, uuid: str) -> NvmlGpu:
        """Return a GPU by its UUID.

        Raises:
            HardwareError: the node has no such GPU, or it is lost.
        """
        with _translated(f"looking for {uuid}"):
            return NvmlGpu(uuid, pynvml.nvmlDeviceGetHandleByUUID(uuid))

    def uuids(self) -> list[str]:
        """Return the UUIDs of all GPUs that answer; a lost one has none to tell.

        Raises:
            HardwareError: NVML does not answer.
        """
        found = []
        for index in range(self.count()):
            try:
                found.append(self.uuid_of_index(index))
            except HardwareError as error:
                if error.code != "gpu_is_lost":
                    raise
        return found

    def count(self) -> int:
        """Return the number of GPUs, lost ones among them.

        Raises:
            HardwareError: NVML does not answer.
        """
        with _translated("counting the GPUs"):
            return int(pynvml.nvmlDeviceGetCount())

    def uuid_of_index(self, index: int) -> str:
        """Return the UUID of the GPU at an index, which is the order of the PCI bus.

        Raises:
            HardwareError: the node has no such GPU, or it is lost.
        """
        with _translated(f"looking for GPU {index}"):
            return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))

    def uuid_of_minor(self, minor: int) -> str:
        """Return the UUID of the GPU whose device node is ``/dev/nvidiaN``.

        Raises:
            HardwareError: the node has no such GPU, or it is lost.
        """
        for uuid in self.uuids():
            with _translated(f"looking for /dev/nvidia{minor}"):
                if pynvml.nvmlDeviceGetMinorNumber(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == minor:
                    return uuid
        raise HardwareError("not_found", f"no GPU of this node is /dev/nvidia{minor}")

    def driver_version(self) -> str:
        """Return the driver's version; also a sign that NVML still answers.

        Raises:
            HardwareError: it does not.
        """
        with _translated("reading the driver's version"):
            return str(pynvml.nvmlSystemGetDriverVersion())
