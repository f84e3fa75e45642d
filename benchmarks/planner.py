"""How long the exact frontier takes, how that grows, and how the public solver compares: GPT-3 175B on A100-SXM, 1F1B.

Times are of this process's processor (of one core: the sweep has one thread), so that a busy machine changes them
little. Ratios to `lowtime` come from the same run. More stages than the eight that were measured repeat them, each
slower or faster by up to 15 % (seeded): equal stages would have far fewer breakpoints. Sizes of
a minute and more are measured when the environment variable LARGEST is set (`make bench LARGEST=1`).
"""

from __future__ import annotations

import math
import os
import resource
import time
from pathlib import Path

import numpy as np
from perseus_api.profile import Measurement, Profile, parse_profile
from perseus_planner import MaximumSlowdown, Pipeline, frontier, plan
from perseus_planner.problem import Problem

_PROFILE = Path(__file__).resolve().parent.parent / "examples" / "profiles" / "gpt3-175b-a100-sxm"
_SIZES = ((8, 12), (8, 24), (8, 48), (8, 96), (16, 64), (16, 128), (16, 256), (32, 128))
_LARGEST = ((32, 256), (64, 512))
_LOWTIME = (12, 24)  # 48 microbatches take it many minutes more
_DOCUMENTS = ((8, 12), (8, 96))
_PLANS = (12, 24, 48, 96)
_BUDGETS = (0.0, 0.5, 1.0, 5.0, 10.0)


def measure() -> list[dict[str, object]]:
    """Return one row for each size, comparison and document."""
    measured = parse_profile((_PROFILE / "profile.csv").read_text(), (_PROFILE / "header.json").read_text())
    _sweep(measured, 8, 2)  # Compile first.
    frontier(measured, Pipeline(8, 2))
    rows = []
    for stages, microbatches in _SIZES + (_LARGEST if os.environ.get("LARGEST") else ()):
        rows.append(_sweep(repeated(measured, stages), stages, microbatches))
        print("  ", rows[-1], flush=True)
    rows.append(_exponents(rows))
    print("  ", rows[-1], flush=True)
    for microbatches in _PLANS:
        rows.append(_plan(measured, microbatches))
        print("  ", rows[-1], flush=True)
    for stages, microbatches in _DOCUMENTS:
        rows.append(_document(measured, stages, microbatches))
        print("  ", rows[-1], flush=True)
    rows += _against_lowtime(measured)
    return rows


def repeated(profile: Profile, stages: int) -> Profile:
    """Return a profile of more stages: the measured ones in turn, each scaled by a factor of its own."""
    if stages <= profile.stages:
        return profile
    factors = np.random.default_rng(0).uniform(0.85, 1.15, size=stages).tolist()
    return Profile(
        profile.header,
        {
            (stage, instruction): tuple(
                Measurement(each.frequency_megahertz, each.time_seconds * factor, each.energy_joules * factor)
                for each in rows
            )
            for stage, factor in enumerate(factors)
            for (source, instruction), rows in profile.measurements.items()
            if source == stage % profile.stages
        },
    )


def _sweep(profile: Profile, stages: int, microbatches: int) -> dict[str, object]:
    begin = time.process_time()
    problem = Problem(profile, Pipeline(stages, microbatches))
    built = time.process_time()
    swept = problem.sweep(np.array([problem.shortest], dtype=np.int64))
    return {
        "what": "frontier",
        "stages": stages,
        "microbatches": microbatches,
        "instructions": problem.dag.nodes,
        "build_seconds": round(built - begin, 4),
        "seconds": round(time.process_time() - built, 4),
        "breakpoints": len(swept.picoseconds),
        "augmentations": swept.augmentations,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _exponents(rows: list[dict[str, object]]) -> dict[str, object]:
    """How time grows with the number of instructions, and with instructions x augmentations, the first size to last."""
    sizes = np.array([[float(str(row[key])) for key in ("instructions", "augmentations", "seconds")] for row in rows])
    logs = np.log(sizes)
    whole = np.polyfit(logs[:, 0], logs[:, 2], 1)[0]
    each = np.polyfit(logs[:, 0], logs[:, 2] - logs[:, 1], 1)[0]
    return {
        "what": "growth",
        "exponent_in_instructions": round(float(whole), 2),
        "exponent_of_one_augmentation": round(float(each), 2),
    }


def _plan(profile: Profile, microbatches: int) -> dict[str, object]:
    """One plan for each budget, as `perseus plan` makes it: the processor seconds of the one that took most."""
    seconds, gaps = [], []
    for budget in _BUDGETS:
        begin = time.process_time()
        found = plan(profile, Pipeline(8, microbatches), MaximumSlowdown(budget))
        seconds.append(time.process_time() - begin)
        gaps.append(found.gap_points)
    return {
        "what": "plan",
        "stages": 8,
        "microbatches": microbatches,
        "most_seconds": round(max(seconds), 2),
        "most_gap_points": round(max(gaps), 3),
    }


def _document(profile: Profile, stages: int, microbatches: int) -> dict[str, object]:
    begin = time.process_time()
    found = frontier(profile, Pipeline(stages, microbatches))
    seconds = time.process_time() - begin
    full = found.fastest.iteration_joules
    return {
        "what": "document",
        "stages": stages,
        "microbatches": microbatches,
        "seconds": round(seconds, 2),
        "plans": len(found.plans),
        "bytes": len(found.encode()),
        "savings_percent": round(100 * (1 - found.plans[0].iteration_joules / full), 2),
        "bound_percent": round(100 * (1 - found.plans[0].bound_joules / full), 2),
    }


def _against_lowtime(profile: Profile) -> list[dict[str, object]]:
    try:
        from benchmarks.lowtime_solver import solve
    except ImportError:
        return [{"what": "lowtime", "missing": "install the extra bench"}]
    rows: list[dict[str, object]] = []
    for microbatches in _LOWTIME:
        pipeline = Pipeline(8, microbatches)
        ours = []
        for _ in range(5):
            problem = Problem(profile, pipeline)
            begin = time.process_time()
            problem.sweep(np.array([problem.shortest], dtype=np.int64))
            ours.append(time.process_time() - begin)
        seconds, points = solve(profile, pipeline)
        rows.append(
            {
                "what": "lowtime",
                "stages": 8,
                "microbatches": microbatches,
                "lowtime_seconds": round(seconds, 2),
                "lowtime_points": points,
                "our_seconds": round(min(ours), 5),
                "ratio": math.floor(seconds / min(ours)),
            }
        )
        print("  ", rows[-1], flush=True)
    return rows
