"""A rank of examples/torch-pipelining whose boundaries are timed; `benchmarks.hooks` starts it in place of train.py."""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perseus_trainer import Session

EXAMPLE = Path(__file__).parents[1] / "examples" / "torch-pipelining"
boundaries: list[list[int]] = []
computing: list[list[int]] = []
iterations: list[int] = []


def timed(function: Callable[..., None]) -> Callable[..., None]:
    """Note how long each call takes, and how long it computes: on a busy machine others run in between."""

    def tell(*arguments: Any) -> None:
        computed, begin = time.thread_time_ns(), time.perf_counter_ns()
        function(*arguments)
        end = time.perf_counter_ns()
        boundaries[-1].append(end - begin)
        computing[-1].append(time.thread_time_ns() - computed)

    return tell


def main() -> None:
    """Run the example's script."""
    begin_iteration, end_iteration = timed(Session.begin_iteration), timed(Session.end_iteration)
    begins: list[int] = []

    def begin(*arguments: Any) -> None:
        boundaries.append([])
        computing.append([])
        begins.append(time.perf_counter_ns())
        begin_iteration(*arguments)

    def end(*arguments: Any) -> None:
        end_iteration(*arguments)
        iterations.append(time.perf_counter_ns() - begins[-1])

    Session.begin_iteration, Session.end_iteration = begin, end  # type: ignore[method-assign,assignment]
    Session.mark = timed(Session.mark)  # type: ignore[method-assign]
    sys.path.insert(0, str(EXAMPLE))
    runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
    folder, rank = Path(os.environ["PERSEUS_BENCHMARK_FOLDER"]), os.environ["PERSEUS_RANK"]
    found = {"boundaries": boundaries, "computing": computing, "iterations": iterations}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
