"""Profiles for the planner's tests: the measured ones, and random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from perseus_api.frontier import Frontier
from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile, ProfileHeader, parse_profile
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline, frontier

ROOT = Path(__file__).resolve().parents[2]
A100 = ROOT / "examples" / "profiles" / "gpt3-175b-a100-sxm"


@pytest.fixture(scope="session")
def a100() -> Profile:
    """GPT-3 175B on A100-SXM: 8 stages, 38 clocks."""
    return parse_profile((A100 / "profile.csv").read_text(), (A100 / "header.json").read_text())


GENERATED = [each for each in Schedule if each is not Schedule.CUSTOM]
WHOLE = (Instruction.FORWARD, Instruction.BACKWARD)


def shaped(stages: int, microbatches: int, schedule: Schedule) -> Pipeline:
    """A pipeline of a schedule, with two chunks where it has several, and as many microbatches as it can do with."""
    if schedule is Schedule.INTERLEAVED_1F1B:
        return Pipeline(stages, max(stages, microbatches // stages * stages), schedule, chunks=2)
    return Pipeline(stages, microbatches, schedule, chunks=2 if schedule is Schedule.ZBV else 1)


def profile_for(pipeline: Pipeline, seed: int, clocks: int) -> Profile:
    """A random profile of all that a pipeline runs."""
    used = sorted({step.instruction for order in pipeline.orders() for step in order}, key=list(Instruction).index)
    return random_profile(seed, pipeline.virtual_stages, clocks, instructions=tuple(used))


@pytest.fixture(scope="session")
def a100_frontier(a100: Profile) -> Frontier:
    """The frontier of GPT-3 175B on A100-SXM, 12 microbatches, as the optimisation pod makes it."""
    return frontier(a100, Pipeline(8, 12))


def random_profile(
    seed: int, stages: int, clocks: int, noise: float = 0.02, instructions: tuple[Instruction, ...] = WHOLE
) -> Profile:
    """A profile of plausible shape whose points are noisy: some are above the hull, some slower at higher clocks."""
    random = np.random.default_rng(seed)
    watts = float(random.uniform(40, 120))
    frequencies = sorted(random.choice(np.arange(600, 1500, 15), size=clocks, replace=False).tolist(), reverse=True)
    measurements = {}
    for stage in range(stages):
        for instruction in instructions:
            base = float(random.uniform(0.01, 0.2))
            dynamic = float(random.uniform(100, 400))
            entries = []
            for clock in frequencies:
                speed = clock / frequencies[0]
                time = base * (0.3 + 0.7 / speed) * float(random.normal(1, noise))
                energy = time * (watts * 1.1 + dynamic * speed**2.5) * float(random.normal(1, noise))
                entries.append(Measurement(int(clock), max(time, 1e-4), max(energy, 0.0)))
            measurements[stage, instruction] = tuple(entries)
    return Profile(ProfileHeader(blocking_power_watts=watts), measurements)
