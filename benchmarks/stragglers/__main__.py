"""``make bench-stragglers``: runs the parts that are named, or all.

They are false_alarms, detection, cluster, accounting, rounds and scale. Figures go to build/bench/stragglers.json; a
part that was not run keeps what an earlier run found.
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
    parts = sys.argv[1:] or list(_PARTS)
    figures: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    for part in parts:
        figures |= _PARTS[part]()
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 0


def _false_alarms() -> dict[str, Any]:
    """Hours of training in simulated time under the operator's own decisions, with noise and no straggler."""
    found = frontier(example_profile(stages=2), Pipeline(2, 4), plans=100)
    alarms = sum(false_alarms(found, HOURS, PIPELINES, NOISE, seed) for seed in range(SEEDS))
    return {"false_alarms": alarms, "false_alarms_hours": HOURS * SEEDS, "false_alarms_noise": NOISE}


def _detection() -> dict[str, Any]:
    """Twenty stragglers and recoveries beside the cluster."""
    from benchmarks.stragglers.detection import measure_detection

    found = measure_detection()
    return {**_latencies(found), "detection": found}


def _cluster() -> dict[str, Any]:
    """The same on the real cluster, with what the healthy pipeline saves."""
    from benchmarks.stragglers.cluster import measure_cluster

    found, four = measure_cluster(pipelines=2, events=20), measure_cluster(pipelines=4, events=4)
    gaps = [
        abs(each["looked_up"] - measured)
        for run in (found, four)
        for each in run["savings"].values()
        for measured in each["measured"]
    ]
    return {**_latencies(found), "worst_gap_to_frontier_points": max(gaps), "cluster": found, "cluster_8x4": four}


def _latencies(found: dict[str, Any]) -> dict[str, Any]:
    scrape = found["scrape_seconds"]
    return {
        "events": found["events"],
        "p95_over_scrape_seconds": percentile(found["answer_seconds"], 95) - scrape,
        "recovery_p95_over_scrape_seconds": percentile(found["recovery_seconds"], 95) - scrape,
    }


def _accounting() -> dict[str, Any]:
    """A hundred iterations, against the device's own energy."""
    from benchmarks.stragglers.accounting import measure_accounting

    found = measure_accounting()
    return {"accounting_error_percent": found["error_percent"], "accounting": found}


def _rounds() -> dict[str, Any]:
    """Rounds over 10,000 pipelines, the monitor alone."""
    from benchmarks.stragglers.rounds import measure_rounds

    found = measure_rounds()
    return {"round_seconds_at_10000_gpus": found["round_seconds"], "rounds": found}


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


_PARTS = {
    "false_alarms": _false_alarms,
    "detection": _detection,
    "cluster": _cluster,
    "accounting": _accounting,
    "rounds": _rounds,
    "scale": _scale,
}


if __name__ == "__main__":
    sys.exit(main())
