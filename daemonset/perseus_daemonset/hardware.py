"""What the agent needs of a GPU, as small interfaces: the rest of the agent knows neither NVML nor pynvml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Errors that a new container cures and waiting does not: the driver was replaced under this one, or the device nodes
# were taken from it ("Unknown Error" after a systemd reload, NVIDIA's container toolkit, issue 48).
CURED_BY_RESTART = frozenset({"unknown", "uninitialized", "driver_not_loaded", "library_not_found", "lib_rm_mismatch"})


class HardwareError(Exception):
    """A call on a GPU failed.

    Attributes:
        code: a short name for metrics, such as ``no_permission``.
    """

    def __init__(self, code: str, text: str) -> None:
        """Name the failure by a short code and a sentence."""
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Reading:
    """What a GPU reports of itself (MHz, watts, degrees Celsius)."""

    clock_megahertz: int
    power_watts: float
    temperature_celsius: float
    event_reasons: tuple[str, ...]


class Gpu(Protocol):
    """One GPU. Every method raises `HardwareError`."""

    uuid: str

    def lock(self, megahertz: int) -> None:
        """Request that the SM clock be held at a value."""

    def reset(self) -> None:
        """Give the clock back to the device's own control."""

    def energy_joules(self) -> float:
        """Return the energy counter."""

    def read(self) -> Reading:
        """Return what the device reports now."""

    def throttle_seconds(self) -> dict[str, float]:
        """Return for how long the device was held below its clocks since the driver was loaded, by cause."""

    def sharing(self) -> str:
        """Return how the GPU is shared (``mig``, ``vgpu`` or ``mps``), empty if it is whole."""

    def model(self) -> str:
        """Return the model's name."""

    def supported_clocks(self) -> tuple[int, ...]:
        """Return the SM clocks that can be locked in MHz, falling."""


class Gpus(Protocol):
    """All GPUs of the node."""

    def gpu(self, uuid: str) -> Gpu:
        """Return a GPU by its UUID.

        Raises:
            HardwareError: there is none.
        """

    def driver_version(self) -> str:
        """Return the driver's version; also a sign that NVML still answers.

        Raises:
            HardwareError: it does not.
        """

    def uuid_of_index(self, index: int) -> str:
        """Return the UUID of the GPU at an index; raises `HardwareError`."""

    def uuid_of_minor(self, minor: int) -> str:
        """Return the UUID of the GPU whose device node is ``/dev/nvidiaN``; raises `HardwareError`."""

    def uuids(self) -> list[str]:
        """Return the UUIDs of all GPUs that answer.

        Raises:
            HardwareError: NVML does not answer.
        """
