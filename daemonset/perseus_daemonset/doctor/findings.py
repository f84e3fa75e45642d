"""What the doctor finds: one line for each thing, and for what is wrong a sentence that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    WELL = "ok"
    NOTE = "note"  # works, but worth knowing
    WRONG = "WRONG"  # the agent cannot do its work on this node


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name, such as ``NVML``.
        told: what was seen; for what is wrong also the remedy.
    """

    level: Level
    what: str
    told: str

    def __str__(self) -> str:
        """Return the line for a person."""
        return f"{self.level.value:<6}{self.what}: {self.told}"


def well(what: str, told: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(Level.WELL, what, told)


def note(what: str, told: str) -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(Level.NOTE, what, told)


def wrong(what: str, told: str) -> Finding:
    """Return a finding that keeps the agent from its work."""
    return Finding(Level.WRONG, what, told)
