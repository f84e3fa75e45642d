"""Measures profiles of a simulated job and compares them with the truth: rows, labels, and what a plan loses by them.

The job runs in real time: GPT-3 175B's stages on simulated A100s with noise, a counter that refreshes every 100 ms,
clock changes that take 20 ms, and chips that warm up. Then the same with two model chunks on each rank. It takes about
a quarter of an hour.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from perseus_api.instructions import Instruction
from perseus_api.plan import Baseline, Plan, Sweep, Variant, Window
from perseus_api.profile import Measurement, Profile, ProfileHeader
from perseus_api.schedules import Schedule
from perseus_operator.profiling.merging import Measured, blocking_power, merge
from perseus_operator.profiling.sweeping import SweepSettings
from perseus_planner import NoSlowdown, Pipeline, plan
from perseus_planner.planning import Planned
from perseus_planner.replay import Replay, ReplayStep, replay
from perseus_planner.steps import letters
from perseus_simulator.main import read_profile
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import example_profile

from benchmarks.profiling.rig import JOB, Rig, running_job

STAGES, PIPELINES, MICROBATCHES = 4, 2, 12
DEVICE = {
    "time_noise": 0.01,
    "power_noise": 0.01,
    "clock_change_delay_seconds": 0.02,
    "warm_up_seconds": 10.0,
    "cold_share": 0.05,
}
# Both have two chunks on each rank: dealt out in turn, and down and back up with split backwards.
CHUNKED = {
    "interleaved": Pipeline(2, 8, Schedule.INTERLEAVED_1F1B, chunks=2),
    "zbv": Pipeline(2, 8, Schedule.ZBV, chunks=2),
}
INPUT_SHARE = 0.55  # of a backward's time and energy, where it is split
LABEL_CLOCKS = (1410, 1380, 1200, 1170, 1005, 810)
LABEL_WINDOWS = (1, 2, 5)  # iterations at one clock
SLOWDOWN_PERCENT = 10
UNBOUNDED = 1e3  # the full sweep is the reference, as profiling pods run it


@dataclass(frozen=True)
class Errors:
    """How far rows are from the truth, in percent; the worst of all."""

    time: float
    energy: float
    blocking: float


def measure() -> dict[str, float]:
    """Return the figures."""
    truth = read_profile()
    pipeline = Pipeline(STAGES, MICROBATCHES)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_job(Path(folder), truth, pipeline, PIPELINES, **DEVICE) as rig,
    ):
        _tell("full sweep")
        begin = time.monotonic()
        full = rig.sweep(SweepSettings(bound=UNBOUNDED, adaptive=False), "full", tell=_tell)
        full_seconds, begin = time.monotonic() - begin, time.monotonic()
        _tell("adaptive sweep")
        adaptive = rig.sweep(SweepSettings(bound=SLOWDOWN_PERCENT / 100), "adaptive", tell=_tell)
        adaptive_seconds = time.monotonic() - begin
        watts = truth.header.blocking_power_watts
        errors, adaptive_errors = (_errors(rig.node, found.measured, watts) for found in (full, adaptive))
        best = plan(_known(rig.node, truth, full.measured, adaptive.measured), pipeline, NoSlowdown())
        lost, adaptive_lost = (_lost_points(rig.node, truth, found.measured, best) for found in (full, adaptive))
    chunked = measure_chunked()
    _tell("labels")
    wrong = count_wrong_labels()
    return {
        "worst_time_error_percent": errors.time,
        "worst_energy_error_percent": errors.energy,
        "blocking_power_error_percent": errors.blocking,
        "wrong_labels": float(wrong),
        "savings_lost_points": lost.points,
        "plan_slowdown_percent": lost.slowdown_percent,
        "adaptive_clock_share": len(adaptive.measured.rows) / len(full.measured.rows),
        "adaptive_savings_lost_points": adaptive_lost.points,
        "adaptive_plan_slowdown_percent": adaptive_lost.slowdown_percent,
        "adaptive_worst_time_error_percent": adaptive_errors.time,
        "adaptive_worst_energy_error_percent": adaptive_errors.energy,
        "sweep_slowdown_percent": 100 * adaptive.slowdown,
        "sweep_longest_iteration_percent": 100 * adaptive.longest_slowdown,
        "sweep_iterations": float(adaptive.iterations),
        "sweep_seconds": adaptive_seconds,
        "full_sweep_slowdown_percent": 100 * full.slowdown,
        "full_sweep_iterations": float(full.iterations),
        "full_sweep_seconds": full_seconds,
        "full_clocks": float(len(full.measured.rows)),
        "adaptive_clocks": float(len(adaptive.measured.rows)),
        "savings_percent": best.savings_percent,
        **chunked,
    }


def measure_chunked() -> dict[str, float]:
    """Return the figures of adaptive sweeps of ranks that hold two model chunks each."""
    figures: dict[str, float] = {}
    truth = read_profile()
    for name, pipeline in CHUNKED.items():
        known = split_backwards(truth) if pipeline.schedule is Schedule.ZBV else truth
        with (
            tempfile.TemporaryDirectory() as folder,
            running_job(Path(folder), known, pipeline, PIPELINES, **DEVICE) as rig,
        ):
            _tell(f"adaptive sweep of {name}")
            begin = time.monotonic()
            found = rig.sweep(SweepSettings(bound=SLOWDOWN_PERCENT / 100), name, tell=_tell)
            errors = _errors(rig.node, found.measured, known.header.blocking_power_watts)
        figures |= {
            f"{name}_worst_time_error_percent": errors.time,
            f"{name}_worst_energy_error_percent": errors.energy,
            f"{name}_blocking_power_error_percent": errors.blocking,
            f"{name}_sweep_slowdown_percent": 100 * found.slowdown,
            f"{name}_sweep_seconds": time.monotonic() - begin,
            f"{name}_clocks": float(len(found.measured.rows)),
        }
    return figures


def split_backwards(profile: Profile) -> Profile:
    """Return a profile whose backwards are in two parts that cost together what the whole does."""
    shares = {Instruction.BACKWARD_INPUT: INPUT_SHARE, Instruction.BACKWARD_WEIGHT: 1 - INPUT_SHARE}
    found: dict[tuple[int, Instruction], tuple[Measurement, ...]] = {}
    for (stage, instruction), rows in profile.measurements.items():
        parts = shares if instruction is Instruction.BACKWARD else {instruction: 1.0}
        for part, share in parts.items():
            found[stage, part] = tuple(
                Measurement(each.frequency_megahertz, each.time_seconds * share, each.energy_joules * share)
                for each in rows
            )
    return replace(profile, measurements=found)


def count_wrong_labels(clocks: Iterable[int] = LABEL_CLOCKS, windows: Iterable[int] = LABEL_WINDOWS) -> int:
    """Return how many rows stand at another clock than they ran at, over windows of several lengths.

    A device whose times go with 1/clock tells by the time which clock ran. Each length is a job of its own; a row that
    is missing is wrong too.
    """
    wrong = 0
    truth = example_profile(stages=2, seconds=0.04)
    for length in windows:
        with (
            tempfile.TemporaryDirectory() as folder,
            running_job(Path(folder), truth, Pipeline(2, 4), clock_change_delay_seconds=0.05, time_noise=0.003) as rig,
        ):
            found = _run_windows(rig, tuple(clocks), length)
            wrong += sum(_is_wrong(rig.node, found, clock) for clock in clocks)
    return wrong


def _run_windows(rig: Rig, clocks: tuple[int, ...], length: int) -> Measured:
    """Run each clock for so many iterations, over and over, until each has had its turn often enough."""
    orders = rig.pipeline.orders()
    first, turns = 14, max(2, 12 // length)
    windows = [
        Window(first_iteration=first + (turn * len(clocks) + index) * length, iterations=length, variant=index)
        for turn in range(turns)
        for index in range(len(clocks))
    ]
    variants = [
        Variant(
            name=str(clock), iteration_seconds=1.0, iteration_joules=0.0,
            clocks=tuple((clock,) * len(order) for order in orders),
        )
        for clock in clocks
    ]  # fmt: skip
    rig.push(
        Plan(
            job=JOB, generation=1, first_iteration=first,
            order=tuple(letters(order) for order in orders),
            variants=tuple(variants), pipelines=(0,),
            baseline=Baseline(iteration_seconds=1.0, stage_joules=(0.0, 0.0), blocking_power_watts=0.0),
            sweep=Sweep(measurement="labels", windows=tuple(windows)),
        )
    )  # fmt: skip
    end = windows[-1].end
    while len(reports := rig.reports()) < rig.pipeline.stages or min(report.iteration for report in reports) <= end:
        time.sleep(0.5)
    return merge(reports, "labels", rig.pipeline)


def _is_wrong(node: SimulatedNode, found: Measured, clock: int) -> bool:
    rows = found.rows.get(clock, {})
    if len(rows) < 4:
        return True
    seconds = sum(row.time_seconds for row in rows.values())
    expected = {each: sum(node.expected(stage, instruction, each)[0] for stage, instruction in rows)
                for each in range(795, 1411, 15)}  # fmt: skip
    return min(expected, key=lambda each: abs(expected[each] - seconds)) != clock


def _errors(node: SimulatedNode, measured: Measured, watts: float) -> Errors:
    times, energies = [], []
    for clock, rows in measured.rows.items():
        for (stage, instruction), row in rows.items():
            seconds, joules = node.expected(stage, instruction, clock)
            times.append(abs(row.time_seconds / seconds - 1))
            energies.append(abs(row.energy_joules / joules - 1))
    worst = max((abs(each / watts - 1) for each in _blocking_watts(measured)), default=1.0)
    return Errors(100 * max(times), 100 * max(energies), 100 * worst)


def _blocking_watts(measured: Measured) -> list[float]:
    return [power.watts for by_clock in measured.blocking.values() if (power := blocking_power(by_clock)) is not None]


@dataclass(frozen=True)
class _Loss:
    points: float
    slowdown_percent: float


def _lost_points(node: SimulatedNode, truth: Profile, measured: Measured, best: Planned) -> _Loss:
    """Return what a plan from measured rows saves less, at the true costs, than the plan from the truth."""
    rows: dict[tuple[int, Instruction], list[Measurement]] = {}
    for clock in sorted(measured.rows, reverse=True):
        for key, row in measured.rows[clock].items():
            rows.setdefault(key, []).append(Measurement(clock, row.time_seconds, row.energy_joules))
    watts = _blocking_watts(measured)
    profile = Profile(ProfileHeader(blocking_power_watts=watts[0]), {key: tuple(each) for key, each in rows.items()})
    found = plan(profile, best.pipeline, NoSlowdown())
    known = _known(node, truth, measured)
    own, reference = _replayed(known, found), _replayed(known, best)
    fastest = best.fastest_joules
    return _Loss(100 * (own.joules - reference.joules) / fastest, 100 * (own.seconds / reference.seconds - 1))


def _replayed(known: Profile, planned: Planned) -> Replay:
    return replay(
        known,
        [[ReplayStep(step.instruction, step.microbatch, step.stage, step.frequency_megahertz) for step in row]
         for row in planned.steps],
    )  # fmt: skip


def _known(node: SimulatedNode, truth: Profile, *measured: Measured) -> Profile:
    """Return the truth of the job's stages, with those clocks as well that were measured beyond the profile's."""
    found = {}
    clocks = {clock for each in measured for clock in each.rows}
    for key, entries in truth.measurements.items():
        if key[0] < STAGES:
            own = {each.frequency_megahertz for each in entries}
            more = [Measurement(clock, *node.expected(*key, clock)) for clock in clocks - own]
            found[key] = tuple(sorted((*entries, *more), key=lambda each: -each.frequency_megahertz))
    return replace(truth, measurements=found)


def _tell(words: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)
