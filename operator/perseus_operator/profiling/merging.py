"""Many ranks' measurements as one: replicas of a stage measure the same thing. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from perseus_api.instructions import Instruction
from perseus_api.measurements import BlockingRow, InstructionRow, RankReport
from perseus_planner import Pipeline

Key = tuple[int, Instruction]  # virtual stage, instruction


@dataclass(frozen=True)
class Row:
    """One instruction of one virtual stage at one clock; energies of one GPU."""

    samples: int
    time_seconds: float
    time_stderr: float
    energy_joules: float
    energy_stderr: float


@dataclass(frozen=True)
class Blocking:
    """Power of a GPU that waits."""

    watts: float
    watts_stderr: float


@dataclass
class Measured:
    """What the ranks of a job have measured together.

    Attributes:
        rows: by clock in MHz, then by virtual stage and instruction; only rows with an energy.
        blocking: by GPU model, then by clock.
        not_held: clocks that a device was asked for and did not hold.
    """

    rows: dict[int, dict[Key, Row]] = field(default_factory=dict)
    blocking: dict[str, dict[int, Blocking]] = field(default_factory=dict)
    not_held: set[int] = field(default_factory=set)


def unreported(reports: Iterable[RankReport], stages: int) -> str:
    """Return which stages no agent reports a rank of, as a sentence; empty if there are none."""
    seen = {report.stage for report in reports}
    missing = [str(stage) for stage in range(stages) if stage not in seen]
    return f"no agent reports a rank of stage {', '.join(missing[:10])} yet" if missing else ""


def merge(reports: Iterable[RankReport], measurement: str, pipeline: Pipeline) -> Measured:
    """Bring the rows of one measurement together.

    Args:
        reports: of the ranks.
        measurement: its name.
        pipeline: says which virtual stage a rank's chunk is.
    """
    rows: dict[tuple[int, Key], list[InstructionRow]] = {}
    blocking: dict[tuple[str, int], list[BlockingRow]] = {}
    found = Measured()
    for report in reports:
        if report.measurement != measurement:
            continue
        for row in report.rows:
            if row.energy_joules and row.energy_stderr is not None and row.chunk < pipeline.chunks:
                key = pipeline.virtual_stage(report.stage, row.chunk), row.instruction
                rows.setdefault((row.frequency_megahertz, key), []).append(row)
        for wait in report.blocking:
            blocking.setdefault((report.gpu_model, wait.frequency_megahertz), []).append(wait)
        found.not_held.update(clock for clock, count in report.not_held.items() if count)
    for (clock, key), each in rows.items():
        found.rows.setdefault(clock, {})[key] = _row(each)
    for (model, clock), waits in blocking.items():
        power = _blocking(waits)
        if power is not None:
            found.blocking.setdefault(model, {})[clock] = power
    return found


def blocking_power(by_clock: dict[int, Blocking]) -> Blocking | None:
    """Return one power for all clocks, weighted by how well each is known; None if none is."""
    powers = [(each.watts, each.watts_stderr) for each in by_clock.values()]
    return Blocking(*_weighted(powers)) if powers else None


def _row(rows: list[InstructionRow]) -> Row:
    """Average replicas by their numbers of samples: two GPUs that differ are both right."""
    samples = sum(row.samples for row in rows)
    shares = [row.samples / samples for row in rows]

    def spread(errors: list[float]) -> float:
        return math.sqrt(sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True)))

    return Row(
        samples=samples,
        time_seconds=sum(share * row.time_seconds for share, row in zip(shares, rows, strict=True)),
        time_stderr=spread([row.time_stderr for row in rows]),
        energy_joules=sum(share * (row.energy_joules or 0.0) for share, row in zip(shares, rows, strict=True)),
        energy_stderr=spread([row.energy_stderr or 0.0 for row in rows]),
    )


def _blocking(waits: list[BlockingRow]) -> Blocking | None:
    """Weigh ranks by how well they know it: one that hardly waits knows nothing of waiting."""
    watts, stderr = _weighted([(wait.watts, wait.watts_stderr) for wait in waits])
    return Blocking(watts, stderr) if watts > 0 else None


def _weighted(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    weights = [1 / max(stderr, 1e-3 * max(watts, 1.0)) ** 2 for watts, stderr in pairs]
    total = sum(weights)
    return sum(weight * watts for weight, (watts, _) in zip(weights, pairs, strict=True)) / total, math.sqrt(1 / total)
