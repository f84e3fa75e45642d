"""Better plans than rounding finds: ruin and recreate over measured clocks, guided by the relaxation's prices.

Clocks are discrete, so a plan rounded from the relaxation strands slack: some of it is too small for any instruction
that could still use it. The search (Schrimpf et al., Record breaking optimization results using the ruin and recreate
principle, 2000) speeds a small connected group of instructions up to the full, then hands the time gained out again
at prices drawn around the relaxation's own, accepting by simulated annealing. The relaxation's prices also say which
options matter: an option's reduced cost is the least that choosing it adds to the gap, so that options beyond a few
times the mean gap are left out.

Instructions are numbered by their begin in the relaxation. Any interval of that order is convex (no path leaves it
and returns), therefore times before it and tails after it hold still while the search works inside: the cost of a
step does not grow with the pipeline. Nothing here knows of stages or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perseus_planner.costs import CostTable
from perseus_planner.dag import Dag
from perseus_planner.ruin import ruin_and_recreate

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

# Tuned on GPT-3 175B (A100, A40; 12 to 96 microbatches; 0 to 10 % slowdown), where a mixed-integer solver's results
# are known; docs/planner.md has the figures.
OPTION_SPREAD = 16.0  # options of a reduced cost up to that many times the mean gap of an instruction are tried
FIRST_TEMPERATURE, LAST_TEMPERATURE = 3.0, 0.05  # in the same unit
LARGEST_RUIN = 16
WINDOW = 256  # instructions
SWEEPS = 12
# A pipeline of few instructions gets several runs instead of one long one: what one of them leaves out another tries.
SMALL, SMALL_SPREADS = 256, (8.0, 32.0)


@dataclass(frozen=True)
class _Neighbourhood:
    """The problem as `ruin` takes it: in the search's own order, with the options that are worth trying."""

    order: Integers
    before: Integers
    after: Integers
    first: Integers
    picoseconds: Integers
    joules: Numbers
    paid: Numbers
    options: Integers


def improve(
    dag: Dag,
    costs: CostTable,
    chosen: Integers,
    begins: Integers,
    prices: Numbers,
    limit_picoseconds: int,
    bound_joules: float,
    effort: float,
) -> Integers:
    """Search for a cheaper plan within the limit.

    Args:
        dag: the pipeline.
        costs: of its kinds of nodes.
        chosen: a plan that keeps the limit: for each node an index into its kind's options.
        begins: begin of each node in the relaxation, in ps.
        prices: the relaxation's price of each node's time, in joules a picosecond.
        limit_picoseconds: the longest path stays at or below it.
        bound_joules: the relaxation's cost at the limit.
        effort: steps of the search for each instruction; 0 returns the plan as it is.

    Returns:
        A plan at most as expensive, in the same form.
    """
    start, picoseconds, joules = costs.option_arrays()
    first = start[dag.kind]
    gap = float(joules[first + chosen].sum()) - bound_joules
    unit = gap / dag.nodes
    if effort <= 0 or unit <= 1e-12 * max(1.0, abs(bound_joules)):
        return chosen
    spreads = SMALL_SPREADS if dag.nodes <= SMALL else (OPTION_SPREAD,)
    best, least = chosen, 0.0
    for seed, spread in enumerate(spreads):
        space = _neighbourhood(dag, start, picoseconds, joules, chosen, begins, prices, spread * unit)
        plan, change = ruin_and_recreate(
            space.before, space.after, space.first, space.picoseconds, space.joules, space.paid,
            _position(space, (first + chosen)[space.order]), limit_picoseconds, unit,
            int(effort * dag.nodes / len(spreads)), np.array([FIRST_TEMPERATURE, LAST_TEMPERATURE]), LARGEST_RUIN,
            WINDOW, SWEEPS, seed,
        )  # fmt: skip
        if change < least:
            best, least = np.empty_like(chosen), change
            best[space.order] = space.options[plan]
            best -= first
    return best


def _neighbourhood(
    dag: Dag,
    start: Integers,
    picoseconds: Integers,
    joules: Numbers,
    chosen: Integers,
    begins: Integers,
    prices: Numbers,
    spread_joules: float,
) -> _Neighbourhood:
    order = np.argsort(begins, kind="stable").astype(np.int64)
    place = np.empty(dag.nodes, dtype=np.int64)
    place[order] = np.arange(dag.nodes)
    counts = (start[1:] - start[:-1])[dag.kind[order]]
    firsts = np.zeros(dag.nodes + 1, dtype=np.int64)
    firsts[1:] = np.cumsum(counts)
    node = np.repeat(np.arange(dag.nodes), counts)
    option = np.arange(firsts[-1]) - firsts[node] + start[dag.kind[order]][node]
    reduced = joules[option] + prices[order][node] * picoseconds[option]
    least = np.minimum.reduceat(reduced, firsts[:-1])
    keep = reduced - least[node] <= spread_joules
    keep |= option == (start[dag.kind] + chosen)[order][node]
    kept = np.zeros(dag.nodes + 1, dtype=np.int64)
    kept[1:] = np.cumsum(np.add.reduceat(keep, firsts[:-1]))
    option = option[keep]
    width = int(max(1, np.diff(dag.before_start).max(), np.diff(dag.after_start).max()))
    return _Neighbourhood(
        order=order,
        before=_rows(dag.before_start, dag.before, order, place, width),
        after=_rows(dag.after_start, dag.after, order, place, width),
        first=kept,
        picoseconds=picoseconds[option],
        joules=joules[option],
        paid=prices[order][node[keep]] * picoseconds[option],
        options=option,
    )


def _rows(start: Integers, others: Integers, order: Integers, place: Integers, width: int) -> Integers:
    """Return neighbours in rows of one width, filled up with the number of nodes."""
    counts = (start[1:] - start[:-1])[order]
    row = np.repeat(np.arange(len(order)), counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((len(order), width), len(order), dtype=np.int64)
    rows[row, column] = place[others[start[order][row] + column]]
    return rows


def _position(space: _Neighbourhood, wanted: Integers) -> Integers:
    """Where each node's option stands among those kept."""
    node = np.repeat(np.arange(len(wanted)), np.diff(space.first))
    places = np.flatnonzero(space.options == wanted[node])
    return places.astype(np.int64)
