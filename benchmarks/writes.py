"""Killed at every write, and every fault of the table: how many writes, kills and differences."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness import faults, scenario
from harness.sweep import sweep, undisturbed


def measure() -> dict[str, Any]:
    """Return the figures of the full sweep (before and after each write), and of the fault table."""
    with tempfile.TemporaryDirectory() as folder, scenario.stage(Path(folder)) as stage:
        calm = undisturbed(stage)
        kills = sweep(stage, calm, range(1, calm.writes + 1))
        killed = [each for each in kills if each.request]
        rows = [faults.play(stage, calm, name) for name in faults.FAULTS]
    return {
        "writes": calm.writes,
        "kills": len(killed),
        "differences": sum(len(each.found) for each in killed),
        "different": [
            {"write": each.write, "moment": each.moment.value, "request": each.request, "found": each.found}
            for each in killed
            if each.found
        ],
        "faults": [
            {
                "fault": row.fault, "struck": row.struck, "unit": row.unit, "writes": row.writes,
                "seconds": round(row.seconds, 1), "differences": row.found,
            }
            for row in rows
        ],
    }  # fmt: skip
