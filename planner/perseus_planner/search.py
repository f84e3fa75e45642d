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
from perseus_planner.loops import njit

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

# Tuned on GPT-3 175B (A100, A40; 12 to 96 microbatches; 0 to 10 % slowdown), where a mixed-integer solver's results
# are known; docs/planner.md has the figures.
OPTION_SPREAD = 8.0  # options of a reduced cost up to that many times the mean gap of an instruction are tried
FIRST_TEMPERATURE, LAST_TEMPERATURE = 3.0, 0.05  # in the same unit
LARGEST_RUIN = 16
WINDOW = 256  # instructions
SWEEPS = 12
RUNS, RUNS_UP_TO = 3, 512  # a pipeline of more instructions gets one long run instead of several


@dataclass(frozen=True)
class _Neighbourhood:
    """The problem in the search's own order, with the options that are worth trying (compressed rows by node)."""

    order: Integers
    before_start: Integers
    before: Integers
    after_start: Integers
    after: Integers
    first: Integers
    picoseconds: Integers
    joules: Numbers
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
    space = _neighbourhood(dag, start, picoseconds, joules, chosen, begins, prices, OPTION_SPREAD * unit)
    place = np.empty(dag.nodes, dtype=np.int64)
    place[space.order] = np.arange(dag.nodes)
    current = _position(space, (first + chosen)[space.order])
    runs = RUNS if dag.nodes <= RUNS_UP_TO else 1
    best, least = current, 0.0
    for seed in range(runs):
        plan, change = _search(
            space.before_start, space.before, space.after_start, space.after, space.first, space.picoseconds,
            space.joules, prices[space.order], current, limit_picoseconds, unit, effort / runs,
            np.array([FIRST_TEMPERATURE, LAST_TEMPERATURE]), LARGEST_RUIN, WINDOW, SWEEPS, seed,
        )  # fmt: skip
        if change < least:
            best, least = plan, change
    found: Integers = space.options[best][place] - first
    return found


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
    before_start, before = _permuted(dag.before_start, dag.before, order, place)
    after_start, after = _permuted(dag.after_start, dag.after, order, place)
    return _Neighbourhood(
        order, before_start, before, after_start, after, kept, picoseconds[option], joules[option], option
    )


def _permuted(start: Integers, others: Integers, order: Integers, place: Integers) -> tuple[Integers, Integers]:
    counts = (start[1:] - start[:-1])[order]
    new_start = np.zeros(len(order) + 1, dtype=np.int64)
    new_start[1:] = np.cumsum(counts)
    source = np.arange(new_start[-1]) - np.repeat(new_start[:-1], counts) + np.repeat(start[:-1][order], counts)
    return new_start, place[others[source]]


def _position(space: _Neighbourhood, wanted: Integers) -> Integers:
    """Where each node's option stands among those kept."""
    node = np.repeat(np.arange(len(wanted)), np.diff(space.first))
    places = np.flatnonzero(space.options == wanted[node])
    return places.astype(np.int64)


@njit(cache=True)
def _begin_from(
    before_start: Integers, before: Integers, durations: Integers, begins: Integers, low: int, high: int
) -> None:  # pragma: no cover
    for node in range(low, high):
        begin = np.int64(0)
        for place in range(before_start[node], before_start[node + 1]):
            other = before[place]
            begin = max(begin, begins[other] + durations[other])
        begins[node] = begin


@njit(cache=True)
def _tails_from(
    after_start: Integers, after: Integers, durations: Integers, tails: Integers, low: int, high: int
) -> None:  # pragma: no cover
    for node in range(high - 1, low - 1, -1):
        tail = np.int64(0)
        for place in range(after_start[node], after_start[node + 1]):
            other = after[place]
            tail = max(tail, tails[other] + durations[other])
        tails[node] = tail


@njit(cache=True)
def _group(
    before_start: Integers, before: Integers, after_start: Integers, after: Integers, group: Integers,
    member: npt.NDArray[np.bool_], size: int, low: int, high: int,
) -> int:  # fmt: skip  # pragma: no cover
    """Grow a random connected group inside an interval; return how many nodes it has."""
    group[0] = low + np.random.randint(high - low)
    member[group[0]] = True
    count = 1
    for _ in range(4 * size):
        if count == size:
            break
        node = group[np.random.randint(count)]
        ahead = before_start[node + 1] - before_start[node]
        degree = ahead + after_start[node + 1] - after_start[node]
        if degree == 0:
            break
        pick = np.random.randint(degree)
        other = before[before_start[node] + pick] if pick < ahead else after[after_start[node] + pick - ahead]
        if low <= other < high and not member[other]:
            member[other] = True
            group[count] = other
            count += 1
    for index in range(count):
        member[group[index]] = False
    return count


@njit(cache=True)
def _search(
    before_start: Integers, before: Integers, after_start: Integers, after: Integers, first: Integers,
    picoseconds: Integers, joules: Numbers, prices: Numbers, start: Integers, limit: int, unit: float, effort: float,
    temperatures: Numbers, largest: int, window: int, sweeps: int, seed: int,
) -> tuple[Integers, float]:  # fmt: skip  # pragma: no cover
    np.random.seed(seed)
    nodes = len(start)
    current, trial, best = start.copy(), start.copy(), start.copy()
    durations = picoseconds[current]
    begins, tails = np.zeros(nodes, dtype=np.int64), np.zeros(nodes, dtype=np.int64)
    group = np.empty(largest, dtype=np.int64)
    member = np.zeros(nodes, dtype=np.bool_)
    cost = np.float64(0.0)  # relative to the start
    best_cost = np.float64(0.0)
    _begin_from(before_start, before, durations, begins, 0, nodes)
    stride = max(1, window // 2)
    windows = 1 if nodes <= window else 1 + (nodes - window + stride - 1) // stride
    cooling = (temperatures[1] / temperatures[0]) ** (1.0 / max(1, sweeps - 1))
    temperature = temperatures[0] * unit
    steps = max(1, int(effort * nodes / (sweeps * windows)))
    for _ in range(sweeps):
        # Begins left of the window and tails right of it are exact: the sweep changes neither until it gets there.
        _tails_from(after_start, after, durations, tails, 0, nodes)
        for number in range(windows):
            low = number * stride
            high = min(nodes, low + window)
            _begin_from(before_start, before, durations, begins, max(0, low - stride), high)
            _tails_from(after_start, after, durations, tails, low, high)
            for _ in range(steps):
                count = _group(
                    before_start, before, after_start, after, group, member, 1 + np.random.randint(largest), low, high
                )  # fmt: skip
                left, right = group[:count].min(), group[:count].max() + 1
                for index in range(count):
                    node = group[index]
                    trial[node] = first[node]
                    durations[node] = picoseconds[first[node]]
                _begin_from(before_start, before, durations, begins, left, right)
                _tails_from(after_start, after, durations, tails, left, right)
                for index in range(count - 1, 0, -1):
                    other = np.random.randint(index + 1)
                    group[index], group[other] = group[other], group[index]
                for second in range(2):
                    for index in range(count):
                        node = group[index]
                        room = limit - begins[node] - tails[node]
                        price = 0.0 if second else prices[node] * 1.2 * np.random.random()
                        option = trial[node]
                        least = joules[option] + price * picoseconds[option]
                        for other in range(option + 1, first[node + 1]):
                            if picoseconds[other] > room:
                                break
                            value = joules[other] + price * picoseconds[other]
                            if value < least:
                                least = value
                                option = other
                        if option != trial[node]:
                            trial[node] = option
                            durations[node] = picoseconds[option]
                            _begin_from(before_start, before, durations, begins, node + 1, right)
                            _tails_from(after_start, after, durations, tails, left, node)
                change = np.float64(0.0)
                for index in range(count):
                    change += joules[trial[group[index]]] - joules[current[group[index]]]
                accepted = change <= 0 or np.random.random() < np.exp(-change / temperature)
                moved = False
                for index in range(count):
                    node = group[index]
                    if accepted:
                        moved |= current[node] != trial[node]
                        current[node] = trial[node]
                    else:
                        trial[node] = current[node]
                        durations[node] = picoseconds[current[node]]
                if accepted and moved:
                    cost += change
                    # What lies beyond the group may have more room now, or less.
                    _begin_from(before_start, before, durations, begins, left, high)
                    _tails_from(after_start, after, durations, tails, low, right)
                    if cost < best_cost - 1e-12:
                        best_cost = cost
                        best[:] = current
                elif not accepted:
                    _begin_from(before_start, before, durations, begins, left, right)
                    _tails_from(after_start, after, durations, tails, left, right)
        temperature *= cooling
    return best, best_cost
