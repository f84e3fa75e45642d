"""What is told of a job's ledger: savings in the status while it runs, and the report at its end. Pure."""

from __future__ import annotations

import json
from typing import Any

from perseus_operator.ledger import Totals

Document = dict[str, Any]
SUCCEEDED, FAILED = "Succeeded", "Failed"
# Two scrapes of a Prometheus in its default setting: the last iterations must have been seen.
REPORT_AFTER_SECONDS = 70.0
# Whoever has no report by then had nothing counted.
REPORT_WITHIN_SECONDS = 10 * REPORT_AFTER_SECONDS
MEASURED, PREDICTED, MIXED = "Measured", "Predicted", "Mixed"
FORMULA = (
    "savings = 1 - energy / baseline; baseline of an iteration = energy of an unlocked iteration + blocking power x "
    "the time beyond the unlocked iteration's; energy by NVML's counters"
)
_LOWEST, _HIGHEST = -100_000, 1_000_000


def savings_status(totals: Totals) -> Document | None:
    """Return measured savings for the status, None while nothing was counted."""
    ratio = totals.savings_ratio
    if totals.energy_joules <= 0 or ratio is None:
        return None
    return {
        "permille": max(_LOWEST, min(1000, round(1000 * ratio))),
        "energyJoules": round(totals.energy_joules),
        "baselineJoules": round(totals.baseline_joules),
        # While part of it is a prediction, the larger part gives the name.
        "source": PREDICTED if totals.predicted_joules > totals.measured_joules else MEASURED,
    }


def final_report(totals: Totals, outcome: str, ended: str) -> Document | None:
    """Return the report of a job that has ended, in integers for its status; None if nothing was counted.

    Args:
        totals: of the whole job.
        outcome: SUCCEEDED or FAILED.
        ended: when training ended (RFC 3339).
    """
    ratio = totals.savings_ratio
    if totals.energy_joules <= 0 or ratio is None:
        return None
    report: Document = {
        "outcome": outcome,
        "ended": ended,
        "iterations": round(totals.iterations),
        "energyJoules": round(totals.energy_joules),
        "baselineJoules": round(totals.baseline_joules),
        "savedJoules": round(totals.baseline_joules - totals.energy_joules),
        "savedIntrinsicJoules": round(totals.intrinsic_joules),
        "savedStragglerJoules": round(totals.straggler_joules),
        "savingsPermille": max(_LOWEST, min(1000, round(1000 * ratio))),
        "source": source_of(totals),
    }
    for name, slowdown in (
        ("slowdownPermille", totals.slowdown_ratio),
        ("planSlowdownPermille", totals.planned_slowdown_ratio),
    ):
        if slowdown is not None:
            report[name] = max(-1000, min(_HIGHEST, round(1000 * slowdown)))
    return report


def source_of(totals: Totals) -> str:
    """Return how the baseline was got."""
    if not totals.predicted_joules:
        return MEASURED
    return MIXED if totals.measured_joules else PREDICTED


def report_json(totals: Totals, final: Document | None) -> str:
    """Return the JSON of the report ConfigMap: exact figures so far, and the report once there is one."""
    exact = {
        "iterations": totals.iterations,
        "seconds": totals.seconds,
        "baselineSeconds": totals.baseline_seconds,
        "energyJoules": totals.energy_joules,
        "baselineMeasuredJoules": totals.measured_joules,
        "baselinePredictedJoules": totals.predicted_joules,
        "savedIntrinsicJoules": totals.intrinsic_joules,
        "savedStragglerJoules": totals.straggler_joules,
        "savingsRatio": totals.savings_ratio,
        "slowdownRatio": totals.slowdown_ratio,
        "planSlowdownRatio": totals.planned_slowdown_ratio,
    }
    rounded = {name: round(value, 6) if value is not None else None for name, value in exact.items()}
    document = {"complete": final is not None, "formula": FORMULA, "baseline": source_of(totals), **rounded}
    if final is not None:
        document |= {"outcome": final["outcome"], "ended": final["ended"]}
    return json.dumps(document, indent=2) + "\n"


def report_sentence(report: Document) -> str:
    """Return the report in a sentence, for an event."""
    slowdown = report.get("slowdownPermille")
    time = "" if slowdown is None else f", {slowdown / 10:+.1f} % time"
    return (
        f"{report['iterations']} iterations used {report['energyJoules'] / 3.6e6:.3f} kWh, "
        f"{report['savingsPermille'] / 10:.1f} % less than unlocked{time} (baseline: {report['source'].lower()}); "
        f"saved {report['savedIntrinsicJoules'] / 3.6e6:.3f} kWh on uneven stages and "
        f"{report['savedStragglerJoules'] / 3.6e6:.3f} kWh behind stragglers"
    )
