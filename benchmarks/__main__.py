"""Runs every benchmark and writes build/bench/NAME.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import hooks, planner

OUTPUT = Path("build/bench")
BENCHMARKS = {"planner": planner.measure, "hooks": hooks.measure}


def main() -> int:
    """Run the benchmarks that the command line names, or all."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or BENCHMARKS:
        figures = BENCHMARKS[name]()
        (OUTPUT / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(f"{name}:")
        for row in figures:
            print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
