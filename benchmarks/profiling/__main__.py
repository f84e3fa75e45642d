"""``make bench-profiling``: writes build/bench/profiling.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.profiling.measure import measure

OUTPUT = Path("build/bench/profiling.json")


def main() -> int:
    """Run; return the exit status."""
    figures = measure()
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print("\n".join(f"{name:>38}  {value:10.3f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
