"""How long the whole frontier takes, and how far its plans are from the bound: GPT-3 175B on A100-SXM, 1F1B."""

from __future__ import annotations

import time
from pathlib import Path

from perseus_api.profile import parse_profile
from perseus_planner import Pipeline, frontier

_PROFILE = Path(__file__).resolve().parent.parent / "examples" / "profiles" / "gpt3-175b-a100-sxm"
_MICROBATCHES = (12, 24, 48, 96)


def measure() -> list[dict[str, object]]:
    """Return seconds (compiled, best of three), size and quality for each number of microbatches."""
    profile = parse_profile((_PROFILE / "profile.csv").read_text(), (_PROFILE / "header.json").read_text())
    frontier(profile, Pipeline(8, 2))  # Compile first.
    rows: list[dict[str, object]] = []
    for microbatches in _MICROBATCHES:
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            found = frontier(profile, Pipeline(8, microbatches))
            seconds.append(time.perf_counter() - begin)
        full = found.fastest.iteration_joules
        rows.append(
            {
                "stages": 8,
                "microbatches": microbatches,
                "seconds": round(min(seconds), 3),
                "plans": len(found.plans),
                "bytes": len(found.encode()),
                "savings_percent": round(100 * (1 - found.plans[0].iteration_joules / full), 2),
                "bound_percent": round(100 * (1 - found.plans[0].bound_joules / full), 2),
                "largest_gap_points": round(
                    max(100 * (each.iteration_joules - each.bound_joules) / full for each in found.plans), 3
                ),
            }
        )
    return rows
