"""The books of one job: what its GPUs have used since it began, over every restart of pods, agents and operator. Pure.

Counters die with their pods and begin anew with their agents, so the ledger keeps the last value of each and adds
differences. It is written down from time to time; a reader that comes later continues from what is written, and counts
what happened meanwhile once. What is saved is told apart by the situation: while nobody straggles, all of it is
intrinsic (uneven stages); while a straggler is acted on, what the same iterations saved on average without one is
intrinsic, and the rest is the straggler's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from perseus_api.encoding import decode, encode, validated
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from perseus_operator.counters import JobReadings, Quantity, Reading, SeriesKey

SCHEMA_VERSION = 1
# Longer than anybody fails to scrape an agent whose pods train: a counter that was forgotten counts from zero.
FORGET_AFTER_SECONDS = 86_400.0
Amount = Annotated[float, Field(allow_inf_nan=False, ge=-1e18, le=1e18)]


class Situation(StrEnum):
    """What a job is doing while its counters move."""

    UNPLANNED = "unplanned"  # no plan runs everywhere: the baseline is measured
    PLANNED = "planned"
    STRAGGLING = "straggling"  # a straggler is acted on


class Totals(BaseModel):
    """What was accounted since the job began.

    Attributes:
        iterations: of training.
        seconds: that they took.
        baseline_seconds: that they would have taken unlocked.
        energy_joules: of all GPUs.
        measured_joules: baseline by measured unlocked iterations.
        predicted_joules: baseline by the profile's prediction.
        intrinsic_joules: saved on uneven stages.
        straggler_joules: saved while others were waited for, beyond the intrinsic.
        planned_iterations: those under a plan, with no straggler acted on.
        planned_seconds: their time.
        planned_baseline_seconds: their time unlocked.
        planned_joules: saved in them.
    """

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    iterations: Amount = 0.0
    seconds: Amount = 0.0
    baseline_seconds: Amount = 0.0
    energy_joules: Amount = 0.0
    measured_joules: Amount = 0.0
    predicted_joules: Amount = 0.0
    intrinsic_joules: Amount = 0.0
    straggler_joules: Amount = 0.0
    planned_iterations: Amount = 0.0
    planned_seconds: Amount = 0.0
    planned_baseline_seconds: Amount = 0.0
    planned_joules: Amount = 0.0

    @property
    def baseline_joules(self) -> float:
        """What the same iterations would have cost unlocked."""
        return self.measured_joules + self.predicted_joules

    @property
    def savings_ratio(self) -> float | None:
        """1 - energy / baseline; None while there is no baseline."""
        return 1 - self.energy_joules / self.baseline_joules if self.baseline_joules > 0 else None

    @property
    def slowdown_ratio(self) -> float | None:
        """Time over unlocked time, less one, stragglers included; None while nothing is known."""
        return self.seconds / self.baseline_seconds - 1 if self.baseline_seconds > 0 else None

    @property
    def planned_slowdown_ratio(self) -> float | None:
        """The same over iterations under a plan in which no straggler was acted on."""
        known = self.planned_baseline_seconds
        return self.planned_seconds / known - 1 if known > 0 else None


class _Anew(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    pod: str
    gpu: str
    quantity: Quantity
    reached: Amount
    noticed_unix_seconds: Amount


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    uid: Annotated[str, Field(max_length=64)]
    read_unix_seconds: Amount
    totals: Totals
    seen_unix_seconds: Annotated[dict[str, Amount], Field(max_length=200_000)]  # by pod
    # pod, then GPU, then the last values in the order of Quantity
    series: Annotated[
        dict[str, dict[str, Annotated[list[Amount | None], Field(max_length=16)]]], Field(max_length=200_000)
    ]
    anew: Annotated[list[_Anew], Field(max_length=200_000)] = []


@dataclass
class Ledger:
    """The books of one job.

    Attributes:
        uid: of the PerseusJob, so that a job of the same name never inherits them.
        read_unix_seconds: when the counters were last read.
        totals: so far.
        last: the last value of each counter.
        seen: when a pod's counters were last seen.
        anew: of counters that began anew, the value that they had reached, and when that was noticed.
    """

    uid: str
    read_unix_seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)
    last: dict[SeriesKey, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    anew: dict[SeriesKey, tuple[float, float]] = field(default_factory=dict)

    @property
    def pods(self) -> frozenset[str]:
        """Pods that were counted."""
        return frozenset(key.pod for key in self.last)

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """Load what `encode` wrote.

        Raises:
            DocumentError: it is no ledger.
        """
        document = validated(_Document, decode(data, "ledger"), "ledger")
        last = {
            SeriesKey(pod, gpu, quantity): value
            for pod, gpus in document.series.items()
            for gpu, values in gpus.items()
            for quantity, value in zip(Quantity, values, strict=False)
            if value is not None
        }
        anew = {
            SeriesKey(each.pod, each.gpu, each.quantity): (each.reached, each.noticed_unix_seconds)
            for each in document.anew
        }
        return cls(document.uid, document.read_unix_seconds, document.totals, last, document.seen_unix_seconds, anew)

    def encode(self) -> bytes:
        """Return the bytes for a ConfigMap's binaryData."""
        series: dict[str, dict[str, list[float | None]]] = {}
        for key in self.last:
            values = [self.last.get(SeriesKey(key.pod, key.gpu, quantity)) for quantity in Quantity]
            series.setdefault(key.pod, {})[key.gpu] = values
        document = _Document(
            uid=self.uid,
            read_unix_seconds=self.read_unix_seconds,
            totals=self.totals,
            seen_unix_seconds=self.seen,
            series=series,
            anew=[
                _Anew(pod=key.pod, gpu=key.gpu, quantity=key.quantity, reached=reached, noticed_unix_seconds=noticed)
                for key, (reached, noticed) in self.anew.items()
            ],
        )
        return encode(document.model_dump(mode="json", by_alias=True))

    def take(
        self,
        found: JobReadings,
        unix_seconds: float,
        situation: Situation,
        since_unix_seconds: float = 0.0,
        foreign: frozenset[str] = frozenset(),
    ) -> None:
        """Add what the counters have moved since they were last read.

        Args:
            found: their readings.
            unix_seconds: now.
            situation: that held meanwhile.
            since_unix_seconds: when the readings' window begins; it may reach back behind the last look.
            foreign: pods of an earlier job of the same name.
        """
        moved = dict.fromkeys(Quantity, 0.0)
        for key, reading in found.series.items():
            if key.pod not in foreign:
                moved[key.quantity] += self._difference(key, reading, unix_seconds, since_unix_seconds)
                self.last[key] = reading.last
                self.seen[key.pod] = unix_seconds
        self._add(moved, situation)
        self.read_unix_seconds = unix_seconds
        self.seen = {pod: when for pod, when in self.seen.items() if when > unix_seconds - FORGET_AFTER_SECONDS}
        self.last = {key: value for key, value in self.last.items() if key.pod in self.seen}
        self.anew = {key: each for key, each in self.anew.items() if key in self.last}

    def _difference(self, key: SeriesKey, reading: Reading, now: float, since: float) -> float:
        """Return how far a counter has moved; one that is seen for the first time has moved from zero."""
        before = self.last.get(key, 0.0)
        counted, when = self.anew.get(key, (0.0, 0.0))
        # A window that reaches back to before an earlier new beginning shows again what was counted then.
        greatest = reading.greatest if when < since or reading.greatest > counted else 0.0
        if reading.last >= before and greatest <= reading.last:
            return reading.last - before
        # It began anew: up to the greatest value before, then from zero.
        self.anew[key] = (max(greatest, before), now)
        return max(0.0, greatest - before) + reading.last

    def _add(self, moved: dict[Quantity, float], situation: Situation) -> None:
        totals = self.totals
        saved = moved[Quantity.MEASURED] + moved[Quantity.PREDICTED] - moved[Quantity.ENERGY]
        iterations = moved[Quantity.ITERATIONS]
        intrinsic = saved
        if situation is Situation.STRAGGLING:
            usual = totals.planned_joules / totals.planned_iterations if totals.planned_iterations > 0 else 0.0
            # Never more than there is: what a straggler costs in savings is not the uneven stages' doing.
            intrinsic = min(saved, max(0.0, usual) * iterations)
        elif situation is Situation.PLANNED:
            totals.planned_joules += saved
            totals.planned_iterations += iterations
            totals.planned_seconds += moved[Quantity.SECONDS]
            totals.planned_baseline_seconds += moved[Quantity.BASELINE_SECONDS]
        totals.energy_joules += moved[Quantity.ENERGY]
        totals.measured_joules += moved[Quantity.MEASURED]
        totals.predicted_joules += moved[Quantity.PREDICTED]
        totals.iterations += iterations
        totals.seconds += moved[Quantity.SECONDS]
        totals.baseline_seconds += moved[Quantity.BASELINE_SECONDS]
        totals.intrinsic_joules += intrinsic
        totals.straggler_joules += saved - intrinsic
