"""Whether a GPU holds the clock that was asked for, and if not, why. Pure.

NVML's SUCCESS means that a clock was requested. Whether the device holds it shows only under load, some time after the
request: below the request with an event reason it is power or heat; without one it is the device's own arbitration.
If it *was* held and then is not, for no reason that the device names and without a call of ours, then somebody else set
or reset the clock, and it is not fought over. A clock above the request proves that nothing of ours is left on the
device; one below may still have our request under somebody else's limit.
"""

from __future__ import annotations

from enum import Enum

from perseus_daemonset.hardware import Reading

TOLERANCE_MEGAHERTZ = 30  # two steps of the usual list of clocks
SETTLE_SECONDS = 0.1
PROOFS = 3
ARBITRATION, ABOVE = "arbitration", "above_request"
# The device does what it is told or has nothing to do: no limit of its own.
HARMLESS = frozenset({"gpu_idle", "applications_clocks_setting", "display_clock_setting"})
# Reasons that hold a clock down, the gravest first: one name for each moment, so that their times add up.
LIMITS = (
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "hw_slowdown",
    "sw_thermal_slowdown",
    "sw_power_cap",
    "sync_boost",
)


class Verdict(Enum):
    """What a reading says of the request."""

    HELD = "held"
    NOT_HELD = "not_held"
    REPLACED = "replaced"  # somebody else's setting took the place of ours
    OVERRULED = "overruled"  # somebody else's limit is below ours, which may still be there


class HeldClock:
    """The books of one GPU's held clock.

    Attributes:
        watched_seconds: time under load in which the clock was watched.
        not_held_seconds: the part of it in which the clock was not held, by reason.
        reason: why it is not held now, empty if it is.
    """

    def __init__(self) -> None:
        """Open the books."""
        self.watched_seconds = 0.0
        self.not_held_seconds: dict[str, float] = {}
        self.reason = ""
        self._request = -1
        self._was_held = False
        self._proofs = 0

    def judge(self, request: int, requested_megahertz: int, reading: Reading, seconds: float) -> Verdict:
        """Take one reading under load.

        Args:
            request: number of the request that holds now; a new one for each call that sets the clock.
            requested_megahertz: what it asked for.
            reading: taken when the request had settled.
            seconds: for how long this reading stands.
        """
        if request != self._request:
            self._request, self._was_held, self._proofs = request, False, 0
        self.watched_seconds += seconds
        self.reason = _reason(requested_megahertz, reading)
        if not self.reason:
            self._was_held, self._proofs = True, 0
            return Verdict.HELD
        self.not_held_seconds[self.reason] = self.not_held_seconds.get(self.reason, 0.0) + seconds
        self._proofs = self._proofs + 1 if self._was_held and self.reason in (ARBITRATION, ABOVE) else 0
        if self._proofs < PROOFS:
            return Verdict.NOT_HELD
        self._was_held, self._proofs = False, 0
        return Verdict.REPLACED if self.reason == ABOVE else Verdict.OVERRULED


def _reason(requested: int, reading: Reading) -> str:
    if abs(reading.clock_megahertz - requested) <= TOLERANCE_MEGAHERTZ:
        return ""
    if reading.clock_megahertz > requested:
        return ABOVE
    named = [each for each in reading.event_reasons if each not in HARMLESS]
    return next((each for each in LIMITS if each in named), named[0] if named else ARBITRATION)
