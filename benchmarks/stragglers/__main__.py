"""``make bench-stragglers``: runs the parts that the command line names (false_alarms, cluster, scale), or all.

Figures go to build/bench/stragglers.json; a part that was not run keeps what an earlier run found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from perseus_planner import Pipeline, frontier
from perseus_simulator.testing import example_profile

from benchmarks.stragglers.simulated_time import false_alarms

OUTPUT = Path("build/bench/stragglers.json")
NOISE, HOURS, SEEDS, PIPELINES = 0.02, 1.0, 24, 8


def main() -> int:
    """Run; return the exit status."""
    parts = sys.argv[1:] or ["false_alarms", "cluster", "scale"]
    figures: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    for part in parts:
        figures |= {"false_alarms": _false_alarms, "cluster": _cluster, "scale": _scale}[part]()
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 0


def _false_alarms() -> dict[str, Any]:
    """Hours of training in simulated time under the operator's own decisions, with noise and no straggler."""
    found = frontier(example_profile(stages=2), Pipeline(2, 4), plans=100)
    alarms = sum(false_alarms(found, HOURS, PIPELINES, NOISE, seed) for seed in range(SEEDS))
    return {"false_alarms": alarms, "false_alarms_hours": HOURS * SEEDS, "false_alarms_noise": NOISE}


def _cluster() -> dict[str, Any]:
    """The real cluster."""
    from benchmarks.stragglers.cluster import measure_cluster

    found = measure_cluster()
    scrape = found["scrape_seconds"]
    gaps = [abs(each["looked_up"] - each["measured"]) for each in found["savings"].values()]
    return {
        "events": found["events"],
        "p95_over_scrape_seconds": percentile(found["answer_seconds"], 95) - scrape,
        "recovery_p95_over_scrape_seconds": percentile(found["recovery_seconds"], 95) - scrape,
        "worst_gap_to_frontier_points": max(gaps),
        "cluster": found,
    }


def _scale() -> dict[str, Any]:
    """One thousand jobs."""
    from benchmarks.stragglers.scale import measure_scale

    found = measure_scale()
    return {
        "round_seconds_at_10000_gpus": found["round_seconds"],
        "operator_megabytes": found["operator_megabytes"],
        "scale": found,
    }


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


if __name__ == "__main__":
    sys.exit(main())
