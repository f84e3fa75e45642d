"""The names of pipeline schedules, as they stand in a PerseusJob's spec and in documents.

Two lists: `Schedule` is what can be planned, `JobSchedule` what the CRD accepts for ``spec.schedule``. They differ in
one word: orders that are given to the planner (`Schedule.CUSTOM`) are, for a job, those that its ranks were seen to run
(`JobSchedule.RECORDED`).
"""

from __future__ import annotations

from enum import StrEnum

_FILLERS = str.maketrans("", "", "-_ ")


class Schedule(StrEnum):
    """A pipeline schedule that the planner knows."""

    ONE_FORWARD_ONE_BACKWARD = "1F1B"
    GPIPE = "GPipe"
    INTERLEAVED_1F1B = "Interleaved1F1B"
    EARLY_RECOMPUTE_1F1B = "EarlyRecompute1F1B"
    ZB_H1 = "ZBH1"
    ZBV = "ZBV"
    CUSTOM = "Custom"

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Return the schedule that a person names; case, hyphens, underscores and spaces do not matter.

        Raises:
            ValueError: no schedule has this name; the text lists those there are.
        """
        plain = text.translate(_FILLERS).casefold()
        for each in cls:
            if each.value.casefold() == plain:
                return each
        raise ValueError(f"schedule {text[:40]!r} is unknown; use one of {', '.join(each.value for each in cls)}")


class JobSchedule(StrEnum):
    """A schedule that a PerseusJob may name."""

    ONE_FORWARD_ONE_BACKWARD = Schedule.ONE_FORWARD_ONE_BACKWARD.value
    GPIPE = Schedule.GPIPE.value
    INTERLEAVED_1F1B = Schedule.INTERLEAVED_1F1B.value
    EARLY_RECOMPUTE_1F1B = Schedule.EARLY_RECOMPUTE_1F1B.value
    ZB_H1 = Schedule.ZB_H1.value
    ZBV = Schedule.ZBV.value
    RECORDED = "Recorded"

    @property
    def planned(self) -> Schedule:
        """The planner's word for it."""
        return Schedule.CUSTOM if self is JobSchedule.RECORDED else Schedule(self.value)
