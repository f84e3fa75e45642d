"""Does the profile still hold? Corrections of its times from what instructions take now, in all pipelines. Pure.

A clock that cannot be held, an aging chip in every pipeline, another kernel version: the plan's times are then no
longer those of the job. What every pipeline's instructions of a stage take longer (or shorter) than the profile says,
at the clock that was asked for, becomes a factor on the profile's times; the frontier is made anew from them in an
optimisation pod. One pipeline alone is a straggler and corrects nothing. Energies are multiplied too: a longer
instruction draws its power for longer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from perseus_api.errors import DocumentError
from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile
from perseus_planner import Pipeline

# A drift must be seen this often in a row, and after a correction the rates must forget what was before it.
AGREEING_LOOKS = 3
QUIET_SECONDS = 600.0
LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
MOST_ENTRIES = 4096
MAXIMUM_BYTES = 262_144
Work = tuple[int, Instruction]


@dataclass(frozen=True)
class Bounds:
    """The least and the most slow pipeline's measured over expected time of one stage's instruction."""

    least: float
    most: float


@dataclass(frozen=True)
class Corrections:
    """Factors on a profile's times.

    Attributes:
        profile: checksum of the profile that they belong to.
        factors: by stage (rank) and instruction.
    """

    profile: str
    factors: Mapping[Work, float] = field(default_factory=dict)

    @property
    def checksum(self) -> str:
        """What identifies the corrected profile: the profile's own checksum where nothing is corrected."""
        if not self.factors:
            return self.profile
        return f"{self.profile}+{hashlib.sha256(self.encode().encode()).hexdigest()[:16]}"

    @property
    def largest(self) -> float:
        """The factor that is furthest from 1."""
        return max(self.factors.values(), key=lambda each: abs(math.log(each)), default=1.0)

    def encode(self) -> str:
        """Return the corrections as JSON; empty where there are none."""
        if not self.factors:
            return ""
        factors = {f"{stage}/{instruction.value}": factor for (stage, instruction), factor in self.factors.items()}
        return json.dumps({"profile": self.profile, "factors": factors}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Corrections:
        """Read corrections.

        Raises:
            DocumentError: they are damaged, too many or out of bounds.
        """
        try:
            if len(text) > MAXIMUM_BYTES:
                raise ValueError("too large")
            document = json.loads(text)
            factors = {}
            for place, factor in document["factors"].items():
                stage, _, instruction = place.partition("/")
                if not (stage.isascii() and stage.isdigit() and LEAST_FACTOR <= float(factor) <= MOST_FACTOR):
                    raise ValueError(place)
                factors[int(stage), Instruction(instruction)] = float(factor)
            if len(factors) > MOST_ENTRIES or not isinstance(document["profile"], str):
                raise ValueError("out of bounds")
            return cls(document["profile"], factors)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DocumentError(f"corrections are not valid: {error}") from None

    def times(self, found: Mapping[Work, float]) -> Corrections:
        """Return corrections with more factors on top, bounded; what comes to about 1 is none."""
        factors = dict(self.factors)
        for work, factor in found.items():
            factors[work] = min(max(factors.get(work, 1.0) * factor, LEAST_FACTOR), MOST_FACTOR)
        kept = {work: round(each, 3) for work, each in sorted(factors.items()) if abs(each - 1) > 0.005}
        return Corrections(self.profile, kept)

    def apply(self, profile: Profile, pipeline: Pipeline) -> Profile:
        """Return the profile with corrected times and energies; a rank's factor holds for all of its chunks."""
        ranks = {
            pipeline.virtual_stage(rank, chunk): rank
            for rank in range(pipeline.stages)
            for chunk in range(pipeline.chunks)
        }

        def corrected(work: Work, rows: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
            factor = self.factors.get((ranks.get(work[0], -1), work[1]), 1.0)
            return tuple(
                Measurement(each.frequency_megahertz, each.time_seconds * factor, each.energy_joules * factor)
                for each in rows
            )

        return Profile(profile.header, {work: corrected(work, rows) for work, rows in profile.measurements.items()})


@dataclass
class DriftWatch:
    """What is remembered of a job's drift between looks.

    Attributes:
        looks: how many in a row showed one.
        quiet_until: monotonic time before which nothing is believed.
        factors: that the profile's times must be multiplied with; empty: none, or not yet sure.
    """

    looks: int = 0
    quiet_until: float = 0.0
    factors: dict[Work, float] = field(default_factory=dict)

    def look(self, bounds: Mapping[Work, Bounds], percent: int, now: float) -> bool:
        """Take what is measured now; return whether a drift has become sure."""
        found = drift_of(bounds, percent)
        if not found or now < self.quiet_until:
            self.looks, self.factors = 0, {}
            return False
        self.looks += 1
        if self.looks < AGREEING_LOOKS:
            return False
        before, self.factors = self.factors, found
        return not before

    def corrected(self, now: float) -> None:
        """The frontier is being made anew: what is measured until then belongs to the one before."""
        self.looks, self.factors, self.quiet_until = 0, {}, now + QUIET_SECONDS


def drift_of(bounds: Mapping[Work, Bounds], percent: int) -> dict[Work, float]:
    """Return the factors of a drift that all pipelines share; empty if no instruction drifts by more than a percentage.

    Args:
        bounds: by stage and instruction.
        percent: from which on a drift is one; 0: never.
    """
    if percent == 0:
        return {}
    found = {work: _shared(each) for work, each in bounds.items()}
    if all(abs(factor - 1) * 100 <= percent for factor in found.values()):
        return {}
    # Once the frontier is made anew, the small drifts are taken along.
    return {work: factor for work, factor in found.items() if abs(factor - 1) > 0.005}


def _shared(bounds: Bounds) -> float:
    if not (math.isfinite(bounds.least) and math.isfinite(bounds.most) and 0 < bounds.least <= bounds.most):
        return 1.0
    if bounds.least > 1:
        return min(bounds.least, MOST_FACTOR)
    return max(bounds.most, LEAST_FACTOR) if bounds.most < 1 else 1.0
