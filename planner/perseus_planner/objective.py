"""What a plan is chosen for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoSlowdown:
    """The least energy in the time of every instruction at the highest clock."""


@dataclass(frozen=True)
class MaximumSlowdown:
    """The least energy in at most `percent` more than that time."""

    percent: float

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 1000:
            raise ValueError(f"percent must be from 0 to 1000, not {self.percent}")


@dataclass(frozen=True)
class MinimumEnergy:
    """The least energy at any time."""


Objective = NoSlowdown | MaximumSlowdown | MinimumEnergy
