"""What the agent needs of a GPU, as small interfaces: the rest of the agent knows neither NVML nor pynvml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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

    def is_partitioned(self) -> bool:
        """Whether the GPU is in MIG mode."""

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
        """Return the driver's version.

        Raises:
            HardwareError: it does not answer.
        """
