"""Which clocks a sweep measures, how far apart, and when it is over: decided from reports alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.conditions import Condition
from perseus_api.instructions import Instruction
from perseus_api.measurements import BlockingRow, InstructionRow, RankReport
from perseus_api.plan import JobReference, Plan
from perseus_api.profile import parse_profile
from perseus_api.schedules import Schedule
from perseus_operator.conditions import Story
from perseus_operator.drift import Corrections
from perseus_operator.profiles import LoadedProfile, Source
from perseus_operator.profiling.bounds import iteration_time, iterations_between, slowdown_at
from perseus_operator.profiling.cache import fingerprint, subject_of
from perseus_operator.profiling.choosing import RISES, next_clocks
from perseus_operator.profiling.document import Subject, profile_csv, profile_header
from perseus_operator.profiling.merging import Key, Row, merge
from perseus_operator.profiling.repeats import Repeats
from perseus_operator.profiling.sweeping import (
    ATTEMPTS,
    Finished,
    Hopeless,
    Push,
    SweepMemory,
    SweepSettings,
    Wait,
    decide,
    sweep_plan,
)
from perseus_operator.steps.drift import Drift
from perseus_operator.steps.telling import tell_profile
from perseus_operator.visit import Visit
from perseus_planner import Pipeline, frontier

CLOCKS = tuple(range(1410, 205, -15))
PIPELINE = Pipeline(2, 4)
JOB = JobReference(namespace="team", name="train", uid="uid-1")
CHEAPEST = 1080
WATTS = 80.0
KEYS: tuple[Key, ...] = tuple(
    (stage, instruction) for stage in (0, 1) for instruction in (Instruction.FORWARD, Instruction.BACKWARD)
)


def row(key: Key, clock: int, error: float = 0.001) -> Row:
    """A convex energy with its least at CHEAPEST."""
    time = (1 + 0.1 * key[0]) * (0.05 if key[1] is Instruction.FORWARD else 0.1) * 1410 / clock
    return Row(20, time, time * error, 20 * (1 + (1410 / clock - 1410 / CHEAPEST) ** 2), 20 * error)


def report(
    rank: int, clocks: list[int], iteration: int = 100, error: float = 0.001, watts_stderr: float = 1.0,
    **changed: object,
) -> RankReport:  # fmt: skip
    rows = tuple(
        InstructionRow(
            instruction=key[1], frequency_megahertz=clock, samples=20, time_seconds=found.time_seconds,
            time_stderr=found.time_stderr, energy_joules=found.energy_joules,
            energy_stderr=found.energy_joules * error,
        )
        for clock in clocks for key in KEYS if key[0] == rank % 2 for found in [row(key, clock, error)]
    )  # fmt: skip
    waits = tuple(
        BlockingRow(frequency_megahertz=clock, seconds=1, watts=WATTS, watts_stderr=watts_stderr) for clock in clocks
    )
    known = {
        "namespace": "team", "job": "train", "job_uid": "uid-1", "pipeline": rank // 2, "stage": rank % 2,
        "tensor_rank": 0, "gpu": f"GPU-{rank}", "gpu_model": "A100", "driver": "580", "supported_clocks": CLOCKS,
        "iteration": iteration, "iteration_begin_seconds": 0.0, "iteration_seconds": 1.0,
        "unlocked_iteration_seconds": 1.0, "connected": True, "measurement": "m", "steady": True,
        "sweep_iterations": 10, "sweep_seconds": 10.5, "longest_seconds": 1.3, "rows": rows, "blocking": waits,
    }  # fmt: skip
    return RankReport.model_validate({**known, **changed})


def play(
    settings: SweepSettings, error: float = 0.001, watts_stderr: Callable[[int], float] = lambda _: 1.0
) -> tuple[Finished | Hopeless, list[Push]]:
    """Let a perfect device measure whatever is asked for, to the end.

    Args:
        settings: of the sweep.
        error: relative standard error of every row.
        watts_stderr: of a rank's power of waiting at a clock, after so many rounds that let ranks wait.
    """
    memory, running, rounds = SweepMemory(), None, []
    clocks: list[int] = []
    while True:
        waited = sum(not each.clocks for each in rounds)
        reports = [report(rank, clocks, 10_000 * (len(rounds) + 1), error, watts_stderr(waited)) for rank in range(4)]
        step = decide(PIPELINE, reports, "m", running, settings, memory)
        if isinstance(step, (Finished, Hopeless)):
            return step, rounds
        assert isinstance(step, Push), step
        rounds.append(step)
        running = sweep_plan(JOB, PIPELINE, step, 2, "m", len(rounds), 1)
        clocks = sorted({*clocks, *step.clocks})
        assert len(rounds) < 200


ASTRAY = "iteration 7, instruction 2: forward came where backward follows in the plan"


def test_a_script_that_runs_something_else_is_named_and_waited_for() -> None:
    push = decide(PIPELINE, [report(rank, []) for rank in range(4)], "m", None, SweepSettings(), SweepMemory())
    assert isinstance(push, Push)
    running, memory = sweep_plan(JOB, PIPELINE, push, 2, "m", 1, 1), SweepMemory()
    beyond = running.sweep.end if running.sweep else 0
    for _ in range(ATTEMPTS + 1):
        reports = [report(rank, [], beyond, mismatch=ASTRAY) for rank in range(4)]
        step = decide(PIPELINE, reports, "m", running, SweepSettings(), memory)
        assert isinstance(step, Wait)
        assert step.is_astray
        assert step.message.startswith("pipeline 0 stage 0 does something else than spec.schedule")
        assert ASTRAY in step.message
    assert memory.tried == {}, "no clock is given up for it"
    corrected = [report(rank, list(push.clocks), beyond) for rank in range(4)]
    assert isinstance(decide(PIPELINE, corrected, "m", running, SweepSettings(), memory), Push)


def test_a_replica_that_runs_something_else_does_not_keep_the_others_from_measuring() -> None:
    push = decide(PIPELINE, [report(rank, []) for rank in range(4)], "m", None, SweepSettings(), SweepMemory())
    assert isinstance(push, Push)
    running = sweep_plan(JOB, PIPELINE, push, 2, "m", 1, 1)
    beyond = running.sweep.end if running.sweep else 0
    reports = [report(rank, list(push.clocks), beyond, mismatch=ASTRAY if rank > 1 else "") for rank in range(4)]
    assert isinstance(decide(PIPELINE, reports, "m", running, SweepSettings(), SweepMemory()), Push)


def test_the_full_sweep_goes_down_until_energy_has_risen_five_clocks_in_a_row() -> None:
    found, rounds = play(SweepSettings(adaptive=False))
    assert isinstance(found, Finished)
    measured = sorted(found.measured.rows, reverse=True)
    assert measured == list(CLOCKS[: len(measured)]), "downward, and none left out"
    assert sum(clock < CHEAPEST for clock in measured) >= RISES
    assert rounds[0].clocks == (1410,)


def test_the_adaptive_sweep_measures_at_most_a_third_of_that() -> None:
    full, _ = play(SweepSettings(adaptive=False))
    found, _ = play(SweepSettings())
    assert isinstance(found, Finished)
    assert isinstance(full, Finished)
    needed = sum(clock >= CHEAPEST for clock in CLOCKS) + RISES
    assert 5 <= len(found.measured.rows) <= needed / 3
    assert 1410 in found.measured.rows
    assert min(found.measured.rows) < CHEAPEST


@given(st.sampled_from(CLOCKS), st.floats(0.01, 0.5), st.integers(2, 12), st.sampled_from(["1F1B", "GPipe"]))
def test_a_slow_iteration_and_those_that_follow_it_keep_the_bound(
    clock: int, bound: float, microbatches: int, schedule: str
) -> None:
    pipeline = Pipeline(2, microbatches, Schedule(schedule))
    measured = {1410: {key: row(key, 1410) for key in KEYS}}
    slowdown = slowdown_at(pipeline, clock, 1410, measured)
    real = iteration_time(pipeline, clock, {clock: {key: row(key, clock) for key in KEYS}})
    assert real <= iteration_time(pipeline, 1410, measured) * (1 + slowdown) * 1.000001, "never longer than predicted"
    assert slowdown / (1 + iterations_between(slowdown, bound)) <= bound


def test_the_windows_of_a_round_keep_the_bound_on_average() -> None:
    _, rounds = play(SweepSettings(bound=0.05))
    measured = {1410: {key: row(key, 1410) for key in KEYS}}
    for each in rounds[1:]:
        extra = sum(count * slowdown_at(PIPELINE, min(clocks), 1410, measured) for clocks, count in each.windows)
        assert extra / each.iterations <= 0.05


def waiting(rounds: list[Push]) -> list[Push]:
    """The rounds that let ranks wait."""
    return [each for each in rounds if not each.clocks]


def test_where_the_power_of_waiting_is_known_no_round_lets_ranks_wait() -> None:
    found, rounds = play(SweepSettings())
    assert isinstance(found, Finished)
    assert waiting(rounds) == []


def test_where_it_is_not_ranks_wait_for_neighbours_at_the_lowest_clock_until_it_is() -> None:
    plain, before = play(SweepSettings(bound=0.05))
    found, rounds = play(SweepSettings(bound=0.05), watts_stderr=lambda waited: 1.0 if waited else 12.0)
    assert isinstance(plain, Finished)
    assert isinstance(found, Finished)
    assert rounds[:-1] == before, "the clocks come first"
    (last,) = waiting(rounds)
    lowest = min(found.measured.rows)
    assert {clocks for clocks, _ in last.windows} == {(lowest, 1410), (1410, lowest), (1410,)}
    plan = sweep_plan(JOB, PIPELINE, last, 2, "m", 9, 1)
    assert {tuple(set(rank).pop() for rank in each.clocks) for each in plan.variants} == {
        (lowest, 1410), (1410, lowest), (1410, 1410),
    }  # fmt: skip
    slowdown = slowdown_at(PIPELINE, lowest, 1410, found.measured.rows)
    slow = sum(count for clocks, count in last.windows if len(clocks) > 1)
    assert slow * slowdown / last.iterations <= 0.05, "the bound holds"


def test_power_of_waiting_that_stays_inexact_is_taken_and_told() -> None:
    found, rounds = play(SweepSettings(), watts_stderr=lambda _: 12.0)
    assert isinstance(found, Finished)
    assert len(waiting(rounds)) == ATTEMPTS
    header = profile_header(found.measured, Subject(("A100", "A100"), "580", 1, 2, 4, "ZBV"), "1")
    assert header is not None
    ranks_and_clocks = 4 * len(found.measured.rows)
    assert header.blocking_power_watts_stderr == pytest.approx(12.0 / ranks_and_clocks**0.5, rel=1e-3)
    profile = parse_profile(profile_csv(found.measured), header.model_dump_json(by_alias=True))
    visit = Visit(("team", "train"), {}, Story())
    tell_profile(
        visit, LoadedProfile("train-profile", profile, "1", Source.MEASURED), Drift(Corrections("1"), Repeats())
    )
    assert "; the power of waiting, 80.0 W, has a standard error of 2" in visit.story.told[Condition.PROFILE_VALID][2]


def test_a_model_that_never_waited_is_let_wait() -> None:
    reports = [report(rank, list(CLOCKS[:2]), 10_000) for rank in range(4)]
    only = SweepSettings(only=CLOCKS[:2])
    silent = [each.model_copy(update={"gpu_model": "H100", "blocking": ()}) if each.stage else each for each in reports]
    assert isinstance(decide(PIPELINE, reports, "m", None, only, SweepMemory()), Finished)
    step = decide(PIPELINE, silent, "m", None, only, SweepMemory())
    assert isinstance(step, Push)
    assert waiting([step]) == [step]


def test_rows_that_never_become_exact_come_again_and_are_given_up_with_a_reason() -> None:
    found, rounds = play(SweepSettings(only=(1410, 1395, 1380)), error=0.5)
    assert isinstance(found, Hopeless)
    assert "exact" in found.message
    assert [each.clocks for each in rounds].count((1410,)) == ATTEMPTS


def test_what_more_rounds_do_not_make_exact_is_taken_as_it_is_if_usable() -> None:
    found, rounds = play(SweepSettings(), error=0.015)
    assert isinstance(found, Finished)
    assert len(rounds) > 2


def test_a_round_is_waited_for_until_every_rank_has_passed_it() -> None:
    memory = SweepMemory()
    push = decide(PIPELINE, [report(rank, []) for rank in range(4)], "m", None, SweepSettings(), memory)
    assert isinstance(push, Push)
    plan: Plan = sweep_plan(JOB, PIPELINE, push, 2, "m", 1, 100)
    assert plan.sweep is not None
    late = [report(rank, [1410], plan.sweep.end - (rank == 3)) for rank in range(4)]
    assert isinstance(decide(PIPELINE, late, "m", plan, SweepSettings(), memory), Wait)
    assert memory.tried == {}, "what is still running is not judged"
    done = [report(rank, [1410], plan.sweep.end) for rank in range(4)]
    assert isinstance(decide(PIPELINE, done, "m", plan, SweepSettings(), memory), Push)


def test_chips_that_still_warm_up_are_waited_for_and_not_held_against_a_clock() -> None:
    memory, running = SweepMemory(), None
    for turn in range(2 * ATTEMPTS):
        cold = [report(rank, [], 10_000 * (turn + 1), steady=rank > 0) for rank in range(4)]
        push = decide(PIPELINE, cold, "m", running, SweepSettings(), memory)
        assert isinstance(push, Push)
        assert push.clocks == (1410,)
        running = sweep_plan(JOB, PIPELINE, push, 2, "m", turn + 1, 1)


def test_a_clock_that_the_devices_do_not_hold_is_given_up_at_once() -> None:
    memory = SweepMemory()
    push = decide(PIPELINE, [report(rank, []) for rank in range(4)], "m", None, SweepSettings(), memory)
    assert isinstance(push, Push)
    running = sweep_plan(JOB, PIPELINE, push, 2, "m", 1, 1)
    capped = [report(rank, [], 10_000, not_held={1410: 5}) for rank in range(4)]
    again = decide(PIPELINE, capped, "m", running, SweepSettings(), memory)
    assert isinstance(again, Push)
    assert again.clocks == (1395,)


def test_a_stage_without_an_agent_is_named() -> None:
    step = decide(PIPELINE, [report(0, [])], "m", None, SweepSettings(), SweepMemory())
    assert step == Wait("no agent reports a rank of stage 1 yet")


def test_replicas_are_averaged_and_another_measurements_rows_are_not_taken() -> None:
    reports = [report(0, [1410]), report(2, [1410]), report(1, [1410], measurement="old")]
    measured = merge(reports, "m", PIPELINE)
    assert set(measured.rows[1410]) == {(0, Instruction.FORWARD), (0, Instruction.BACKWARD)}
    assert measured.rows[1410][0, Instruction.FORWARD].samples == 40
    assert measured.blocking["A100"][1410].watts == pytest.approx(80)


def test_the_profile_reads_back_as_it_was_measured() -> None:
    found, _ = play(SweepSettings())
    assert isinstance(found, Finished)
    subject = Subject(("A100", "H100"), "580", 1, 2, 4, "1F1B", "tiny", "image@sha256:1")
    assert profile_header(found.measured, subject, "1") is None, "the power of waiting is not known of the H100"
    header = profile_header(found.measured, Subject(("A100", "A100"), "580", 1, 2, 4, "1F1B"), "1")
    assert header is not None
    profile = parse_profile(profile_csv(found.measured), header.model_dump_json(by_alias=True, exclude_defaults=True))
    assert profile.header.blocking_power_watts == pytest.approx(80)
    assert len(profile.header.blocking_power_at_clocks) == len(found.measured.rows)
    for key, entries in profile.measurements.items():
        for each in entries:
            expected = row(key, each.frequency_megahertz)
            assert each.energy_joules == pytest.approx(expected.energy_joules)


def test_a_device_with_few_clocks_is_measured_whole() -> None:
    rows = {clock: {key: row(key, clock) for key in KEYS} for clock in (1410, 1200, 1005)}
    assert next_clocks((1410, 1200, 1005), rows, 80.0, frozenset(), True) == []
    assert next_clocks((1410, 1200, 1005), {}, 80.0, frozenset(), True) == [1410]


@pytest.mark.parametrize(
    ("schedule", "instructions"),
    [
        (Schedule.INTERLEAVED_1F1B, (Instruction.FORWARD, Instruction.BACKWARD)),
        (Schedule.ZBV, (Instruction.FORWARD, Instruction.BACKWARD_INPUT, Instruction.BACKWARD_WEIGHT)),
    ],
)
def test_ranks_with_several_chunks_become_a_profile_of_virtual_stages(
    schedule: Schedule, instructions: tuple[Instruction, ...]
) -> None:
    pipeline = Pipeline(2, 4, schedule, chunks=2)

    def told(rank: int, clocks: list[int], iteration: int) -> RankReport:
        rows = tuple(
            InstructionRow(
                instruction=each, chunk=chunk, frequency_megahertz=clock, samples=20, time_seconds=found.time_seconds,
                time_stderr=found.time_stderr, energy_joules=found.energy_joules, energy_stderr=found.energy_stderr,
            )
            for clock in clocks for chunk in (0, 1) for each in instructions
            for found in [row((pipeline.virtual_stage(rank % 2, chunk), each), clock)]
        )  # fmt: skip
        return report(rank, clocks, iteration, rows=rows)

    memory, running, clocks, rounds = SweepMemory(), None, list[int](), 0
    while True:
        reports = [told(rank, clocks, 10_000 * (rounds + 1)) for rank in range(4)]
        step = decide(pipeline, reports, "m", running, SweepSettings(), memory)
        if isinstance(step, Finished):
            break
        assert isinstance(step, Push), step
        rounds += 1
        running = sweep_plan(JOB, pipeline, step, 2, "m", rounds, 1)
        assert running.chunks == tuple(tuple(each.chunk for each in order) for order in pipeline.orders())
        clocks = sorted({*clocks, *step.clocks})
    subject = Subject(("A100", "A100"), "580", 1, 2, 4, schedule.value, chunks=2)
    header = profile_header(step.measured, subject, "1")
    assert header is not None
    profile = parse_profile(profile_csv(step.measured), header.model_dump_json(by_alias=True, exclude_defaults=True))
    assert set(profile.measurements) == {(stage, each) for stage in range(4) for each in instructions}
    for key, entries in profile.measurements.items():
        for each in entries:
            expected = row(key, each.frequency_megahertz)
            assert (each.time_seconds, each.energy_joules) == pytest.approx(
                (expected.time_seconds, expected.energy_joules)
            )
    made = frontier(profile, pipeline, plans=5)
    assert (made.shape.stages, made.shape.chunks) == (2, 2)
    assert subject_of(profile.header) == subject


SUBJECT = Subject(("A100", "A100"), "580", 1, 2, 4, "ZBH1", "tiny", "image@sha256:1")


@pytest.mark.parametrize(
    "other",
    [
        {"model": "large"},
        {"models": ("A100", "H100")},
        {"driver": "570"},
        {"models": ("A100",) * 3},
        {"pipelines": 3},
        {"tensor_parallel": 2},
        {"microbatches": 8},
        {"chunks": 2},
        {"schedule": "1F1B"},
        {"image": "image@sha256:2"},
    ],
    ids=str,
)
def test_what_differs_in_one_circumstance_is_not_found_again(other: dict[str, Any]) -> None:
    assert fingerprint(SUBJECT) == fingerprint(replace(SUBJECT))
    assert fingerprint(SUBJECT) != fingerprint(replace(SUBJECT, **other))


@pytest.mark.parametrize("unknown", [{"model": ""}, {"driver": ""}, {"image": ""}, {"models": ("A100", "")}], ids=str)
def test_where_a_circumstance_is_not_known_nothing_is_kept_or_found(unknown: dict[str, Any]) -> None:
    assert fingerprint(replace(SUBJECT, **unknown)) == ""
