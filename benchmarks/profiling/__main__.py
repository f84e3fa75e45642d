"""``make bench-profiling``: writes build/bench/profiling.json; PARTS=chunked: that alone, profiling-chunked.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.profiling.measure import measure, measure_chunked

OUTPUT = Path("build/bench")


def main() -> int:
    """Run; return the exit status."""
    chunked_only = sys.argv[1:] == ["chunked"]
    figures = measure_chunked() if chunked_only else measure()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    name = "profiling-chunked.json" if chunked_only else "profiling.json"
    (OUTPUT / name).write_text(json.dumps(figures, indent=2) + "\n")
    print("\n".join(f"{name:>38}  {value:10.3f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
