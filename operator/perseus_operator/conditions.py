"""Conditions of a PerseusJob: all of them, always, in the order of the story. Pure; times move when a status does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perseus_api.conditions import Condition, Reason

Document = dict[str, Any]
MAXIMUM_MESSAGE = 1024


@dataclass
class Story:
    """The conditions of one visit.

    Attributes:
        told: by type: status (True, False, Unknown), reason and message.
    """

    told: dict[Condition, tuple[str, Reason, str]] = field(default_factory=dict)

    def say(self, condition: Condition, status: bool | None, reason: Reason, message: str) -> None:
        """Set a condition; None is Unknown."""
        word = "Unknown" if status is None else str(status)
        self.told[condition] = (word, reason, message[:MAXIMUM_MESSAGE])

    def preface(self, condition: Condition, words: str) -> None:
        """Put words before what was said of a condition."""
        status, reason, message = self.told[condition]
        self.told[condition] = (status, reason, f"{words}: {message}"[:MAXIMUM_MESSAGE])

    def status_of(self, condition: Condition) -> bool | None:
        """Return what was said of a condition."""
        word = self.told.get(condition, ("Unknown",))[0]
        return None if word == "Unknown" else word == "True"

    def finish(self) -> None:
        """Say Unknown of whatever was not reached, and sum up."""
        blocker = next(
            (
                (condition, self.told[condition])
                for condition in Condition
                if condition in self.told
                and condition not in (Condition.OBSERVED, Condition.STRAGGLING, Condition.READY)
                and self.told[condition][0] != "True"
            ),
            None,
        )
        for condition in Condition:
            if condition not in self.told and condition is not Condition.READY:
                waits = f"waits for {blocker[0].value}" if blocker else "not known yet"
                self.say(condition, None, Reason.WAITING, waits)
        workload = self.told[Condition.WORKLOAD_READY]
        if workload[1] is Reason.TRAINING_FINISHED:
            self.say(Condition.READY, False, Reason.TRAINING_FINISHED, workload[2])
        elif blocker:
            # The blocker's own reason: `kubectl get` then says in one word where the job stands.
            self.say(Condition.READY, False, blocker[1][1], f"{blocker[0].value}: {blocker[1][2]}")
        elif self.told[Condition.PLAN_APPLIED][1] is Reason.DRY_RUN:
            self.say(Condition.READY, True, Reason.DRY_RUN, self.told[Condition.PLAN_APPLIED][2])
        else:
            self.say(Condition.READY, True, Reason.RUNNING, "training runs under the plan")

    def documents(self, before: list[Document], generation: int, now: str) -> list[Document]:
        """Return the conditions for the status; a time is kept while its status stays."""
        known = {each.get("type"): each for each in before}
        found = []
        for condition in Condition:
            status, reason, message = self.told[condition]
            earlier = known.get(condition.value)
            kept = earlier is not None and earlier.get("status") == status
            found.append(
                {
                    "type": condition.value,
                    "status": status,
                    "reason": reason.value,
                    "message": message,
                    "observedGeneration": generation,
                    "lastTransitionTime": earlier["lastTransitionTime"] if earlier and kept else now,
                }
            )
        return found
