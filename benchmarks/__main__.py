"""Runs every benchmark and writes build/bench/NAME.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import fleet, hooks, planner, writes

OUTPUT = Path("build/bench")
BENCHMARKS: dict[str, Callable[[], Any]] = {"planner": planner.measure, "hooks": hooks.measure}
# Control planes of their own, and a quarter of an hour each: run when they are named.
LONG: dict[str, Callable[[], Any]] = {"writes": writes.measure, "operator": fleet.measure}


def main() -> int:
    """Run the benchmarks that the command line names, or all short ones."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or BENCHMARKS:
        figures = {**BENCHMARKS, **LONG}[name]()
        (OUTPUT / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(f"{name}:")
        for row in figures if isinstance(figures, list) else [figures]:
            print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
