"""From the relaxation's event times to a plan that exists: a measured clock for each instruction, real times kept.

Rounding down to a measured clock inside the relaxation's events leaves slack. It is handed out in passes at falling
prices: first only where an instruction pays what the relaxation says its time is worth, at last for anything at all,
so that the slack does not go to whoever comes first. `search` then looks for better. Nothing here is relaxed: times
are measured ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from perseus_planner.costs import CostTable
from perseus_planner.dag import Dag
from perseus_planner.loops import loop
from perseus_planner.search import improve
from perseus_planner.sweep import finish_times

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
PRICE_STEPS = 11
SEARCH_STEPS = 300_000  # of a plan that is looked at closely: half a second
LEAST_EFFORT, MOST_EFFORT = 4.0, 1600.0


def realise(
    dag: Dag,
    costs: CostTable,
    events: Integers,
    prices: Numbers,
    limit_picoseconds: int,
    bound_joules: float,
    steps: int,
) -> Integers:
    """Choose an option for each node.

    Args:
        dag: the pipeline.
        costs: of its kinds of nodes.
        events: begin and end of each node in the relaxation, in ps, shape (2 x nodes,).
        prices: of each node's time in the relaxation, in joules a picosecond.
        limit_picoseconds: the longest path at real times must not be longer.
        bound_joules: the relaxation's cost at the limit.
        steps: of the search; none: rounding and spending alone.

    Returns:
        For each node the index into its kind's options.

    Raises:
        ValueError: not even the fastest options keep the limit.
    """
    start, picoseconds, joules = costs.option_arrays()
    first, end = start[dag.kind], start[dag.kind + 1]
    if finish_times(dag.before_start, dag.before, picoseconds[first]).max() > limit_picoseconds:
        raise ValueError("the limit is shorter than the fastest measured plan")
    room = events[1::2] - events[0::2]
    chosen = rounded(first, end, picoseconds, joules, prices, room)
    for price in np.linspace(1.0, 0.0, PRICE_STEPS):
        spend(
            dag.before_start, dag.before, dag.after_start, dag.after, chosen, end, picoseconds, joules,
            price * prices, limit_picoseconds,
        )  # fmt: skip
    effort = min(MOST_EFFORT, max(LEAST_EFFORT, steps / dag.nodes)) if steps else 0.0
    return improve(dag, costs, chosen - first, events[0::2], prices, limit_picoseconds, bound_joules, effort)


@loop("i8[::1](i8[::1],i8[::1],i8[::1],f8[::1],f8[::1],i8[::1])")
def rounded(
    first: Integers, end: Integers, picoseconds: Integers, joules: Numbers, prices: Numbers, room: Integers
) -> Integers:  # pragma: no cover
    """Return, for each node, the option that fits its room and costs least with its time paid for."""
    chosen = first.copy()
    for node in range(len(first)):
        least = joules[first[node]] + prices[node] * picoseconds[first[node]]
        for option in range(first[node] + 1, end[node]):
            if picoseconds[option] > room[node]:
                break
            cost = joules[option] + prices[node] * picoseconds[option]
            # Equal but for rounding: the longer one has its time already.
            if cost <= least + 1e-9 * abs(least):
                least = cost
                chosen[node] = option
    return chosen


@loop("void(i8[::1],i8[::1],i8[::1],i8[::1],i8[::1],i8[::1],i8[::1],f8[::1],f8[::1],i8)")
def spend(
    before_start: Integers, before: Integers, after_start: Integers, after: Integers, chosen: Integers, end: Integers,
    picoseconds: Integers, joules: Numbers, prices: Numbers, limit: int,
) -> None:  # fmt: skip  # pragma: no cover
    """Slow nodes down, in topological order, wherever it pays at these prices and the limit allows it."""
    nodes = len(chosen)
    tails = np.zeros(nodes, dtype=np.int64)
    for node in range(nodes - 1, -1, -1):
        for place in range(after_start[node], after_start[node + 1]):
            other = after[place]
            tails[node] = max(tails[node], tails[other] + picoseconds[chosen[other]])
    ends = np.empty(nodes, dtype=np.int64)
    for node in range(nodes):
        begin = np.int64(0)
        for place in range(before_start[node], before_start[node + 1]):
            begin = max(begin, ends[before[place]])
        best = chosen[node]
        least = joules[best] + prices[node] * picoseconds[best]
        for option in range(best + 1, end[node]):
            if begin + picoseconds[option] + tails[node] > limit:
                break
            cost = joules[option] + prices[node] * picoseconds[option]
            if cost < least:
                least = cost
                best = option
        chosen[node] = best
        ends[node] = begin + picoseconds[best]
