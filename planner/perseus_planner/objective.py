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


@dataclass(frozen=True)
class Deadline:
    """The least energy in at most `seconds`."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 1e6:
            raise ValueError(f"seconds must be more than 0 and at most 1000000, not {self.seconds}")


@dataclass(frozen=True)
class Straggler:
    """The least energy while everybody waits for a pipeline that takes `seconds`: waiting costs what it costs."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 1e6:
            raise ValueError(f"seconds must be more than 0 and at most 1000000, not {self.seconds}")


@dataclass(frozen=True)
class PowerBudget:
    """The shortest time in which the pipeline draws at most `watts` on average (all its GPUs together)."""

    watts: float

    def __post_init__(self) -> None:
        if not 0 < self.watts <= 1e9:
            raise ValueError(f"watts must be more than 0 and at most 1e9, not {self.watts}")


Objective = NoSlowdown | MaximumSlowdown | MinimumEnergy | Deadline | Straggler | PowerBudget
