"""The names of pipeline schedules, as they stand in a PerseusJob's spec and in documents."""

from __future__ import annotations

from enum import StrEnum


class Schedule(StrEnum):
    """A pipeline schedule."""

    ONE_FORWARD_ONE_BACKWARD = "1F1B"
    GPIPE = "GPipe"
