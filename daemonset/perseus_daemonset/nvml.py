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
}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise HardwareError(_CODES.get(error.value, "other"), f"{what}: {error}") from None


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
        with _translated(f"locking {self.uuid} at {megahertz} MHz"):
            pynvml.nvmlDeviceSetGpuLockedClocks(self._handle, megahertz, megahertz)

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
                event_reasons=tuple(name for bit, name in _REASONS.items() if bits & bit),
            )

    def is_partitioned(self) -> bool:
        """Whether the GPU is in MIG mode; a GPU that does not know MIG is not.

        Raises:
            HardwareError: NVML refused for another reason.
        """
        try:
            with _translated(f"reading the MIG mode of {self.uuid}"):
                current, _ = pynvml.nvmlDeviceGetMigMode(self._handle)
        except HardwareError as error:
            if error.code == "not_supported":
                return False
            raise
        return bool(current)

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

    def driver_version(self) -> str:
        """Return the driver's version; also a sign that NVML still answers.

        Raises:
            HardwareError: it does not.
        """
        with _translated("reading the driver's version"):
            return str(pynvml.nvmlSystemGetDriverVersion())
