"""From the relaxation's event times to a plan that exists: a measured clock for each instruction, real times kept.

An instruction may take until its event in the relaxation; what rounding to a measured clock leaves over goes to
whatever follows it, and what is left at the end is spent in further passes. Nothing here is relaxed: times are
measured ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from perseus_planner.costs import CostTable
from perseus_planner.dag import Dag
from perseus_planner.sweep import finish_times

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
MAXIMUM_PASSES = 8


def realise(dag: Dag, costs: CostTable, events: Integers, limit_nanoseconds: int) -> Integers:
    """Choose an option for each node.

    Args:
        dag: the pipeline.
        costs: of its kinds of nodes.
        events: begin and end of each node in the relaxation, in ns, shape (2 x nodes,).
        limit_nanoseconds: the longest path at real times must not be longer.

    Returns:
        For each node the index into its kind's options.

    Raises:
        ValueError: not even the fastest options keep the limit.
    """
    start, nanoseconds, _ = costs.option_arrays()
    first = start[dag.kind]
    end = start[dag.kind + 1]
    chosen = first.copy()
    if finish_times(dag.before_start, dag.before, nanoseconds[chosen]).max() > limit_nanoseconds:
        raise ValueError("the limit is shorter than the fastest measured plan")
    deadlines = np.minimum(events[1::2], limit_nanoseconds)
    # The first pass follows the relaxation; it may only slow down, so what it cannot keep stays at the fastest.
    latest = _latest_ends(dag.after_start, dag.after, nanoseconds[chosen], limit_nanoseconds)
    chosen = _slow_down(dag.before_start, dag.before, chosen, end, nanoseconds, np.minimum(deadlines, latest), latest)
    for _ in range(MAXIMUM_PASSES):
        latest = _latest_ends(dag.after_start, dag.after, nanoseconds[chosen], limit_nanoseconds)
        best = _slow_down(dag.before_start, dag.before, chosen, end, nanoseconds, latest, latest)
        if np.array_equal(best, chosen):
            break
        chosen = best
    options: Integers = chosen - first
    return options


@njit(cache=True)
def _latest_ends(
    after_start: Integers, after: Integers, nanoseconds: Integers, limit: int
) -> Integers:  # pragma: no cover
    """Return when each node must have ended for the limit to be kept with the given durations."""
    latest = np.empty(len(nanoseconds), dtype=np.int64)
    for node in range(len(nanoseconds) - 1, -1, -1):
        bound = np.int64(limit)
        for place in range(after_start[node], after_start[node + 1]):
            bound = min(bound, latest[after[place]] - nanoseconds[after[place]])
        latest[node] = bound
    return latest


@njit(cache=True)
def _slow_down(
    before_start: Integers, before: Integers, chosen: Integers, option_end: Integers, nanoseconds: Integers,
    deadlines: Integers, latest: Integers,
) -> Integers:  # fmt: skip  # pragma: no cover
    """Give each node, in topological order, its slowest option that ends before its deadline; never a faster one.

    Options get cheaper with time, so the slowest is the cheapest. `latest` is what later nodes rely on: a deadline that
    an earlier choice has made impossible falls back to the option chosen so far, which keeps it.
    """
    found = chosen.copy()
    ends = np.empty(len(chosen), dtype=np.int64)
    for node in range(len(chosen)):
        begin = np.int64(0)
        for place in range(before_start[node], before_start[node + 1]):
            begin = max(begin, ends[before[place]])
        option = chosen[node]
        bound = min(deadlines[node], latest[node])
        while option + 1 < option_end[node] and begin + nanoseconds[option + 1] <= bound:
            option += 1
        found[node] = option
        ends[node] = begin + nanoseconds[option]
    return found
