"""What an instruction costs at each duration: measured points, and the lower convex hull that the relaxation may use.

The cost of running an instruction in d seconds is e(d) - P_blocking d: its energy, less what its GPU would have drawn
waiting meanwhile (Chung et al., SOSP '24, section 4.1). From here on times are integers of a picosecond (about as fine
as a double resolves an iteration's seconds) and slopes integers of a nanowatt, so that the sweep compares exactly.

Each GPU has its own blocking power where a pipeline mixes models. A fixed instruction is one option at clock 0: a hull
of one corner. What runs beside the orders (`p2p` on edges) costs its whole energy: its rank computes or waits
meanwhile, which is counted there, so the transfer draws its energy in addition and no waiting is saved by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile

PICOSECONDS = 1_000_000_000_000
NANOWATTS = 1_000_000_000
# More than any sum of slopes: an arc of this capacity never saturates.
UNBOUNDED = np.int64(2**62)
# A steeper slope than a megawatt is noise between two equal times; limited, the relaxation stays a lower bound.
STEEPEST = 1_000_000 * NANOWATTS


@dataclass(frozen=True)
class Option:
    """One measured clock of an instruction (MHz, picoseconds, joules with blocking taken off)."""

    clock_megahertz: int
    picoseconds: int
    cost_joules: float


@dataclass(frozen=True)
class Hull:
    """The decreasing part of the lower convex hull of an instruction's points.

    Attributes:
        lengths: durations of the hull's corners in ps, falling (the cheapest first).
        capacities: how much flow (nanowatts) runs at each length before the next; the last is unbounded.
        corner_joules: cost at each corner.
    """

    lengths: tuple[int, ...]
    capacities: tuple[int, ...]
    corner_joules: tuple[float, ...]


@dataclass(frozen=True)
class CostTable:
    """Options and hulls of all kinds of nodes, as arrays for the compiled loops.

    Attributes:
        options: by kind, in order of growing time; each cheaper than all before it.
        fastest: by kind, the option of the highest clock (what an unlocked GPU runs).
        hulls: by kind.
    """

    options: tuple[tuple[Option, ...], ...]
    fastest: tuple[Option, ...]
    hulls: tuple[Hull, ...]

    def option_arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return (start of each kind, picoseconds, joules) in compressed rows."""
        start = np.zeros(len(self.options) + 1, dtype=np.int64)
        start[1:] = np.cumsum([len(each) for each in self.options])
        flat = [option for each in self.options for option in each]
        return (
            start,
            np.array([option.picoseconds for option in flat], dtype=np.int64),
            np.array([option.cost_joules for option in flat], dtype=np.float64),
        )

    def hull_arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (start of each kind, lengths, cumulative capacities) in compressed rows."""
        start = np.zeros(len(self.hulls) + 1, dtype=np.int64)
        start[1:] = np.cumsum([len(each.lengths) for each in self.hulls])
        lengths = np.array([length for each in self.hulls for length in each.lengths], dtype=np.int64)
        cumulative = np.concatenate([np.cumsum((*each.capacities[:-1], 0)) for each in self.hulls]).astype(np.int64)
        cumulative[start[1:] - 1] = UNBOUNDED
        return start, lengths, cumulative


def cost_table(
    profile: Profile,
    keys: Sequence[tuple[int, Instruction]],
    ranks: Sequence[int] = (),
    beside: Sequence[bool] = (),
) -> CostTable:
    """Return the costs of the kinds of nodes of a pipeline.

    Args:
        profile: measured times and energies.
        keys: kinds: virtual stage and instruction.
        ranks: rank of each kind, for its GPU's blocking power; by default the virtual stage.
        beside: whether each kind runs beside the orders, so that no blocking power is taken off; by default none does.

    Raises:
        KeyError: the profile does not hold one of them.
        IndexError: the profile lists the GPUs of fewer ranks.
    """
    options, fastest, hulls = [], [], []
    for index, key in enumerate(keys):
        watts = profile.blocking_power_of(ranks[index] if ranks else key[0])
        if beside and beside[index]:
            watts = 0.0
        points = [_option(each, watts) for each in profile.measurements[key]]
        fastest.append(max(points, key=lambda point: point.clock_megahertz))
        options.append(_useful(points))
        hulls.append(convex_hull(points))
    return CostTable(tuple(options), tuple(fastest), tuple(hulls))


def convex_hull(points: Sequence[Option]) -> Hull:
    """Return the decreasing part of the lower convex hull (Andrew's monotone chain)."""
    corners: list[Option] = []
    for point in _useful(list(points)):
        while len(corners) >= 2 and _is_above(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    scale = PICOSECONDS * NANOWATTS
    # Slopes fall in steepness from the fastest corner on; rounding to whole nanowatts must not break that.
    slopes = [
        min(
            STEEPEST,
            max(1, round((left.cost_joules - right.cost_joules) / (right.picoseconds - left.picoseconds) * scale)),
        )
        for left, right in pairwise(corners)
    ]
    slopes = [int(each) for each in np.maximum.accumulate(slopes[::-1])][::-1]
    rising = slopes[::-1]
    capacities = [steep - flat for flat, steep in zip([0, *rising], rising, strict=False)]
    return Hull(
        lengths=tuple(each.picoseconds for each in reversed(corners)),
        capacities=(*capacities, int(UNBOUNDED)),
        corner_joules=tuple(each.cost_joules for each in reversed(corners)),
    )


def _option(measurement: Measurement, blocking_watts: float) -> Option:
    return Option(
        clock_megahertz=measurement.frequency_megahertz,
        picoseconds=max(1, round(measurement.time_seconds * PICOSECONDS)),
        cost_joules=measurement.energy_joules - blocking_watts * measurement.time_seconds,
    )


def _useful(points: list[Option]) -> tuple[Option, ...]:
    """Points in order of growing time, without those that another one beats in both time and cost."""
    found: list[Option] = []
    for point in sorted(points, key=lambda each: (each.picoseconds, each.cost_joules)):
        if not found or point.cost_joules < found[-1].cost_joules:
            found.append(point)
    return tuple(found)


def _is_above(left: Option, middle: Option, right: Option) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    return (middle.cost_joules - left.cost_joules) * (right.picoseconds - left.picoseconds) >= (
        right.cost_joules - left.cost_joules
    ) * (middle.picoseconds - left.picoseconds)
