"""The exact frontier of the relaxation: from T*, where everything runs at its cheapest, down to a given time.

Project time-cost trade-off with convex piecewise linear costs (Kelley 1961; Fulkerson 1961; Phillips and Dessouky
1977): its dual is a flow from the first event to the last, in which an activity carries the flow at the length of its
hull's corner. Potentials are event times; flow is the price of a second. `descent` lowers T until a residual path is
tight, augments along it, and so on. All comparisons are between integers: no step is lost to rounding.

Compiled by numba (cached on disk); nothing here knows of stages or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perseus_planner.costs import NANOWATTS, PICOSECONDS, CostTable
from perseus_planner.dag import Dag
from perseus_planner.descent import descend
from perseus_planner.loops import loop

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sweep:
    """The relaxation's frontier.

    Attributes:
        picoseconds: times of the breakpoints, falling from T*.
        cost_joules: cost (without the blocking power of the whole iteration) at each.
        target_picoseconds: times at which events were recorded.
        events: at each target, the time of every node's begin and end in ps, shape (targets, 2 x nodes).
        flows: at each target, the price of each node's time in nanowatts, shape (targets, nodes).
        augmentations: paths along which flow was pushed.
    """

    picoseconds: Integers
    cost_joules: Numbers
    target_picoseconds: Integers
    events: Integers
    flows: Integers
    augmentations: int

    def cost_at(self, picoseconds: float) -> float:
        """Return the least cost in joules of any plan of the relaxation with at most this time."""
        return float(np.interp(picoseconds, self.picoseconds[::-1], self.cost_joules[::-1]))

    def prices_joules_per_picosecond(self, index: int) -> Numbers:
        """Return the price of each node's time at a target: what shortening it by a picosecond is worth."""
        prices: Numbers = self.flows[index] / (PICOSECONDS * NANOWATTS)
        return prices


def sweep(dag: Dag, costs: CostTable, target_picoseconds: Integers) -> Sweep:
    """Sweep from T* down to the last target.

    Args:
        dag: the pipeline.
        costs: of its kinds of nodes.
        target_picoseconds: falling times at which events are recorded; those above T* are recorded at T*.
    """
    start, lengths, cumulative = costs.hull_arrays()
    tails, heads = _arcs(dag)
    nodes = 2 * dag.nodes + 2
    cheapest = np.array([hull.lengths[0] for hull in costs.hulls], dtype=np.int64)[dag.kind]
    ends = _longest(dag, cheapest)
    potentials = np.zeros(nodes, dtype=np.int64)
    potentials[0:-2:2], potentials[1:-2:2] = ends - cheapest, ends
    potentials[-1] = ends.max()
    base_joules = float(np.array([hull.corner_joules[0] for hull in costs.hulls])[dag.kind].sum())
    times, prices, recorded, flows, augmentations = descend(
        tails, heads, *_traversals(tails, heads, nodes), dag.nodes, start[dag.kind], start[dag.kind + 1], lengths,
        cumulative, potentials, target_picoseconds.astype(np.int64),
    )  # fmt: skip
    steps = -np.diff(times) * (prices / (PICOSECONDS * NANOWATTS))
    return Sweep(
        picoseconds=times,
        cost_joules=base_joules + np.concatenate([[0.0], np.cumsum(steps)]),
        target_picoseconds=target_picoseconds,
        events=recorded[:, :-2],
        flows=flows,
        augmentations=augmentations,
    )


def longest_path(dag: Dag, picoseconds: Integers) -> int:
    """Return the length of the longest path with the given duration of each node."""
    return int(_longest(dag, picoseconds).max())


def _longest(dag: Dag, picoseconds: Integers) -> Integers:
    ends: Integers = finish_times(dag.before_start, dag.before, picoseconds)
    return ends


def _arcs(dag: Dag) -> tuple[Integers, Integers]:
    """Arcs by number: first one for each activity, then precedences, then from the source and to the sink."""
    count = dag.nodes
    numbers = np.arange(count)
    waiting = np.repeat(numbers, np.diff(dag.before_start))
    first = numbers[np.diff(dag.before_start) == 0]
    last = numbers[np.diff(dag.after_start) == 0]
    source, sink = 2 * count, 2 * count + 1
    tails = np.concatenate([2 * numbers, 2 * dag.before + 1, np.full(len(first), source), 2 * last + 1])
    heads = np.concatenate([2 * numbers + 1, 2 * waiting, 2 * first, np.full(len(last), sink)])
    return tails.astype(np.int64), heads.astype(np.int64)


def _traversals(tails: Integers, heads: Integers, nodes: int) -> tuple[Integers, Integers]:
    """Return the traversals that leave each node, in compressed rows: 2 x arc along it, 2 x arc + 1 against it."""
    origins = np.empty(2 * len(tails), dtype=np.int64)
    origins[0::2], origins[1::2] = tails, heads
    start = np.zeros(nodes + 1, dtype=np.int64)
    start[1:] = np.cumsum(np.bincount(origins, minlength=nodes))
    return start, np.argsort(origins, kind="stable").astype(np.int64)


@loop("i8[::1](i8[::1],i8[::1],i8[::1])")
def finish_times(before_start: Integers, before: Integers, picoseconds: Integers) -> Integers:  # pragma: no cover
    """Return when each node ends if everything begins as early as it can; nodes are in topological order."""
    ends = np.empty(len(picoseconds), dtype=np.int64)
    for node in range(len(picoseconds)):
        begin = np.int64(0)
        for place in range(before_start[node], before_start[node + 1]):
            begin = max(begin, ends[before[place]])
        ends[node] = begin + picoseconds[node]
    return ends
