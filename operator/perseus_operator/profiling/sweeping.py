"""One step of a sweep: from what the agents report to what the next plan measures, or to the end. Pure.

A round is one plan: windows of iterations, one after another, each with its clock. When all ranks have passed the last
one, what they measured says which clocks come next. A clock whose rows are not exact enough comes again; one that
cannot be measured is given up with a reason. Once the clocks are done, ranks are let wait for
one another where the power of waiting is not known well enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from perseus_api.instructions import TUNABLE_INSTRUCTIONS
from perseus_api.measurements import RankReport
from perseus_api.plan import Baseline, JobReference, Plan, Sweep, Variant, Window
from perseus_planner import Pipeline
from perseus_planner.steps import letters

from perseus_operator.profiling.bounds import Clocks, instruction_time, iteration_time, slowdown_at, turn_at
from perseus_operator.profiling.choosing import next_clocks
from perseus_operator.profiling.merging import Key, Measured, Row, blocking_power, merge, unreported
from perseus_operator.profiling.waiting import is_waiting_known, waiting_turns

ATTEMPTS = 3
STEADY_SECONDS = 10.0  # of the first round: agents see within it whether the chips still warm up
MAXIMUM_REPLICAS = 8  # more ranks of a stage are not asked
MAXIMUM_ITERATIONS = 64  # at one clock in one round
MAXIMUM_CLOCKS = 60  # of one round
MAXIMUM_WINDOWS = 1000
# Relative standard errors at which a row is exact enough.
TIME_ERROR, ENERGY_ERROR = 0.004, 0.008
LENIENCE = 5.0


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep measures.

    Attributes:
        bound: how much longer iterations may be on average while the sweep goes on: 0.1 is 10 %.
        adaptive: whether only clocks that can change a plan are measured.
        seconds: that each rank shall run at a clock, all replicas together.
        samples: of each instruction at a clock, all replicas together.
        only: clocks that are measured at all; empty: all that the device supports.
    """

    bound: float = 0.1
    adaptive: bool = True
    seconds: float = 10.0
    samples: int = 12
    only: tuple[int, ...] = ()


@dataclass
class SweepMemory:
    """What is remembered of a sweep between visits; an operator that starts anew only tries more often.

    Attributes:
        tried: rounds that asked for a clock.
        waited: rounds that let ranks wait.
        judged: generation of the plan whose outcome was looked at.
    """

    tried: dict[int, int] = field(default_factory=dict)
    waited: int = 0
    judged: int = 0


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet.

    Attributes:
        message: what is waited for.
        is_astray: whether it is for the training script, which runs something else than the plan.
    """

    message: str
    is_astray: bool = False


@dataclass(frozen=True)
class Push:
    """A round to begin.

    Attributes:
        clocks: that it measures, in MHz; none where it measures waiting alone.
        windows: clocks of the ranks and number of iterations, one after the other.
    """

    clocks: tuple[int, ...]
    windows: tuple[tuple[Clocks, int], ...]
    message: str

    @property
    def iterations(self) -> int:
        """How long it is."""
        return sum(count for _, count in self.windows)


@dataclass(frozen=True)
class Finished:
    """The sweep is over.

    Attributes:
        measured: the rows, of clocks that are complete alone.
        given_up: clocks that could not be measured, with the reason.
        iterations: that the sweep took.
        slowdown: mean over them, against unlocked ones: 0.05 is 5 %.
        longest_slowdown: of the longest of them.
    """

    measured: Measured
    given_up: dict[int, str]
    iterations: int
    slowdown: float
    longest_slowdown: float


@dataclass(frozen=True)
class Hopeless:
    """No profile can be measured; the sentence says why and what to do."""

    message: str


def decide(
    pipeline: Pipeline, reports: Sequence[RankReport], measurement: str, running: Plan | None,
    settings: SweepSettings, memory: SweepMemory,
) -> Wait | Push | Finished | Hopeless:  # fmt: skip
    """Return what to do next.

    Args:
        pipeline: the job's, with its orders.
        reports: of the ranks that were asked.
        measurement: name of the sweep.
        running: the plan in force, if it is a sweep of this measurement.
        settings: how to measure.
        memory: what earlier visits know; it is brought up to date.
    """
    connected = [report for report in reports if report.connected]
    missing = unreported(connected, pipeline.stages)
    if missing:
        return Wait(missing)
    supported = [clock for clock in _common_clocks(connected) if not settings.only or clock in settings.only]
    if len(supported) < 2:
        return Hopeless(
            "the ranks' GPUs have fewer than two clocks in common: give a profile in spec.profiling.profileRef"
        )
    if any(report.iteration_seconds is None for report in connected):
        return Wait("waits for every rank's second iteration")
    measured = merge(reports, measurement, pipeline)
    complete = {
        clock: rows
        for clock, rows in measured.rows.items()
        if _is_complete(pipeline, rows, settings, memory.tried.get(clock, 0) >= ATTEMPTS - 1)
    }
    if running is not None and (words := _astray(connected)):
        return Wait(words, is_astray=True)
    if (
        running is not None
        and running.sweep is not None
        and min(each.iteration for each in connected) < running.sweep.end
    ):
        return Wait(_progress(len(complete), "the round goes on"))
    if all(each.steady for each in connected):
        _judge(running, complete, memory)
    given_up = _given_up(memory, complete, measured)
    highest = max(each for each in supported if each not in given_up) if set(supported) - set(given_up) else 0
    if not highest:
        return Hopeless(_nothing(given_up))
    # At the highest clock first: what a lower one costs in time is known from there.
    blocking = _typical_blocking(measured)
    iteration_seconds = min(each.unlocked_iteration_seconds or each.iteration_seconds or 1.0 for each in connected)
    replicas = min(sum(each.stage == stage for each in connected) for stage in range(pipeline.stages))
    replicas = min(replicas, MAXIMUM_REPLICAS)
    wanted = next_clocks(supported, complete, blocking, frozenset(given_up), settings.adaptive)
    if wanted:
        return _round(pipeline, wanted, highest, complete, settings, replicas, iteration_seconds)
    if len(complete) < 2:
        return Hopeless(_nothing(given_up))
    models = {each.gpu_model for each in connected}
    if pipeline.stages > 1 and memory.waited < ATTEMPTS and not is_waiting_known(measured, models):
        return _waiting_round(pipeline, complete, settings, replicas)
    return _finished(reports, measurement, measured, complete, given_up)


def sweep_plan(
    job: JobReference, pipeline: Pipeline, push: Push, pipelines: int, measurement: str, generation: int,
    first_iteration: int,
) -> Plan:  # fmt: skip
    """Return the plan document of a round."""
    orders = pipeline.orders()
    variants: dict[Clocks, Variant] = {}
    windows: list[Window] = []
    begin = first_iteration
    for told, iterations in push.windows:
        number = list(variants).index(told) if told in variants else len(variants)
        clocks = tuple(
            tuple(told[rank % len(told)] if step.instruction.has_clock else 0 for step in order)
            for rank, order in enumerate(orders)
        )
        name = "/".join(str(clock) for clock in told)
        # What it costs is what it is run for.
        variants.setdefault(told, Variant(name=name, iteration_seconds=1.0, iteration_joules=0.0, clocks=clocks))
        windows.append(Window(first_iteration=begin, iterations=iterations, variant=number))
        begin += iterations
    return Plan(
        job=job,
        generation=generation,
        first_iteration=first_iteration,
        order=tuple(letters(order) for order in orders),
        chunks=tuple(tuple(step.chunk for step in order) for order in orders) if pipeline.chunks > 1 else (),
        variants=tuple(variants.values()),
        pipelines=(0,) * pipelines,
        tensor_parallel=pipeline.tensor_parallel,
        baseline=Baseline(iteration_seconds=1.0, stage_joules=(0.0,) * len(orders), blocking_power_watts=0.0),
        sweep=Sweep(measurement=measurement, windows=tuple(windows)),
    )


def next_iteration(reports: Sequence[RankReport], wall_seconds: float, notice_seconds: float) -> int:
    """Return the iteration from which a new plan can hold on all agents: the first that begins late enough from now."""
    found = 1
    for report in reports:
        if report.connected and report.iteration_begin_seconds is not None and report.iteration_seconds:
            elapsed = max(0.0, wall_seconds + notice_seconds - report.iteration_begin_seconds)
            found = max(found, report.iteration + math.floor(elapsed / report.iteration_seconds) + 1)
    return found


def _astray(reports: Sequence[RankReport]) -> str:
    """Return who runs something else than the plan; empty where each stage has a rank that can be measured."""
    followed = {report.stage for report in reports if not report.mismatch}
    for report in reports:
        if report.stage not in followed:
            return (
                f"pipeline {report.pipeline} stage {report.stage} does something else than spec.schedule and "
                f"spec.parallelism say, and nothing is measured of it ({report.mismatch}): correct the script's "
                "schedule or number of microbatches, or make the job anew as it trains, or with spec.schedule Recorded"
            )
    return ""


def _common_clocks(reports: Sequence[RankReport]) -> list[int]:
    common = set(reports[0].supported_clocks).intersection(*(each.supported_clocks for each in reports[1:]))
    return sorted(common, reverse=True)


def _keys(pipeline: Pipeline) -> set[Key]:
    return {
        (pipeline.virtual_stage(rank, step.chunk), step.instruction)
        for rank, order in enumerate(pipeline.orders())
        for step in order
        if step.instruction in TUNABLE_INSTRUCTIONS
    }


def _is_complete(pipeline: Pipeline, rows: dict[Key, Row], settings: SweepSettings, lenient: bool) -> bool:
    """Whether all rows of a clock are exact enough; what more rounds did not make exact is taken as it is, if usable.

    The profile tells the standard errors of all rows.
    """
    factor = LENIENCE if lenient else 1.0
    for key in _keys(pipeline):
        row = rows.get(key)
        if row is None or row.samples < settings.samples:
            return False
        if row.time_stderr > factor * TIME_ERROR * row.time_seconds:
            return False
        if row.energy_stderr > factor * ENERGY_ERROR * row.energy_joules:
            return False
    return True


def _judge(running: Plan | None, complete: dict[int, dict[Key, Row]], memory: SweepMemory) -> None:
    """Count once, for the round that is over, which of its clocks have been asked for in vain, or that ranks waited."""
    if running is None or running.generation <= memory.judged:
        return
    memory.judged = running.generation
    asked = [{clock for clocks in variant.clocks for clock in clocks if clock} for variant in running.variants]
    memory.waited += any(len(clocks) > 1 for clocks in asked)
    for clock in set().union(*asked):
        if clock not in complete:
            memory.tried[clock] = memory.tried.get(clock, 0) + 1


def _given_up(memory: SweepMemory, complete: dict[int, dict[Key, Row]], measured: Measured) -> dict[int, str]:
    return {
        clock: "the device did not hold it" if clock in measured.not_held else "its figures did not become exact enough"
        for clock, count in memory.tried.items()
        if clock not in complete and count >= (1 if clock in measured.not_held else ATTEMPTS)
    }


def _nothing(given_up: dict[int, str]) -> str:
    reasons = "; ".join(f"{clock} MHz: {reason}" for clock, reason in sorted(given_up.items(), reverse=True)[:3])
    return (
        f"fewer than two clocks could be measured ({reasons}): see perseus_gpu_clock_event_active for what holds "
        "clocks down, or give a profile in spec.profiling.profileRef"
    )


def _typical_blocking(measured: Measured) -> float:
    powers = [power.watts for by_clock in measured.blocking.values() if (power := blocking_power(by_clock)) is not None]
    return sum(powers) / len(powers) if powers else 0.0


def _round(
    pipeline: Pipeline, wanted: Sequence[int], highest: int, complete: dict[int, dict[Key, Row]],
    settings: SweepSettings, replicas: int, iteration_seconds: float,
) -> Push:  # fmt: skip
    """Return the iterations of a round: each at one clock, with those at the highest that the bound asks for."""
    own = iteration_time(pipeline, highest, complete)
    scale = iteration_seconds / own if not complete else 1.0
    turns: list[list[tuple[Clocks, int]]] = []
    for clock in wanted[:MAXIMUM_CLOCKS]:
        slowdown = slowdown_at(pipeline, clock, highest, complete)
        turn = turn_at((clock,), highest, slowdown, settings.bound)
        count = _iterations(pipeline, clock, complete, settings, replicas, scale)
        if not complete:
            count = max(count, math.ceil(STEADY_SECONDS / iteration_seconds))
        turns.append(turn * count)
    windows = [window for turn in turns for window in turn][:MAXIMUM_WINDOWS]
    words = f"{', '.join(str(clock) for clock in wanted)} MHz are next"
    return Push(tuple(wanted), tuple(_joined(windows)), _progress(len(complete), words))


def _waiting_round(
    pipeline: Pipeline, complete: dict[int, dict[Key, Row]], settings: SweepSettings, replicas: int
) -> Push:
    """Return as many iterations in which ranks wait as a clock is measured in, for each half of them."""
    count = _iterations(pipeline, min(complete), complete, settings, replicas, 1.0)
    windows = waiting_turns(pipeline, complete, count, settings.bound)[:MAXIMUM_WINDOWS]
    words = "ranks wait for one another, to know the power of waiting better"
    return Push((), tuple(_joined(windows)), _progress(len(complete), words))


def _iterations(
    pipeline: Pipeline, clock: int, complete: dict[int, dict[Key, Row]], settings: SweepSettings, replicas: int,
    scale: float,
) -> int:  # fmt: skip
    """Return how many iterations give enough seconds and samples at a clock, and one more for what is left out.

    Times that were not measured yet are right up to a common factor: `scale`.
    """
    needed = 1
    for rank, order in enumerate(pipeline.orders()):
        counts: dict[Key, int] = {}
        for step in order:
            if step.instruction.has_clock:
                key = pipeline.virtual_stage(rank, step.chunk), step.instruction
                counts[key] = counts.get(key, 0) + 1
        seconds = sum(count * scale * instruction_time(key, clock, complete) for key, count in counts.items())
        needed = max(
            [
                needed,
                math.ceil(settings.seconds / (max(seconds, 1e-6) * replicas)),
                *(math.ceil(settings.samples / (count * replicas)) for count in counts.values()),
            ]
        )
    return min(MAXIMUM_ITERATIONS, needed + 1)


def _joined(windows: Sequence[tuple[Clocks, int]]) -> Iterator[tuple[Clocks, int]]:
    """Join neighbours of the same clocks."""
    for clocks, group in groupby(windows, key=lambda window: window[0]):
        yield clocks, sum(count for _, count in group)


def _progress(count: int, words: str) -> str:
    return f"measured {count} clocks while training goes on; {words}"


def _finished(
    reports: Sequence[RankReport], measurement: str, measured: Measured, complete: dict[int, dict[Key, Row]],
    given_up: dict[int, str],
) -> Finished:  # fmt: skip
    own = [each for each in reports if each.measurement == measurement and each.sweep_iterations]
    ratios = [
        (each.sweep_seconds / each.sweep_iterations / each.unlocked_iteration_seconds - 1,
         each.longest_seconds / each.unlocked_iteration_seconds - 1)
        for each in own if each.unlocked_iteration_seconds
    ]  # fmt: skip
    return Finished(
        measured=Measured(complete, measured.blocking, measured.not_held),
        given_up=given_up,
        iterations=max((each.sweep_iterations for each in own), default=0),
        slowdown=sum(mean for mean, _ in ratios) / len(ratios) if ratios else 0.0,
        longest_slowdown=max((longest for _, longest in ratios), default=0.0),
    )
