"""``make dashboards``: write the dashboards' JSON into the chart."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dashboards.fleet import fleet_dashboard
from dashboards.job import job_dashboard
from dashboards.node import node_dashboard

FOLDER = Path(__file__).resolve().parent.parent / "charts" / "perseus-operator" / "dashboards"


def all_dashboards() -> dict[str, dict[str, Any]]:
    """Return the dashboards by file name."""
    return {"fleet.json": fleet_dashboard(), "job.json": job_dashboard(), "node.json": node_dashboard()}


def text_of(dashboard: dict[str, Any]) -> str:
    """Return a dashboard as it is written."""
    return json.dumps(dashboard, indent=2, sort_keys=True) + "\n"


def main() -> int:
    """Write all files; return the exit status."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, dashboard in all_dashboards().items():
        (FOLDER / name).write_text(text_of(dashboard))
    return 0


if __name__ == "__main__":
    sys.exit(main())
