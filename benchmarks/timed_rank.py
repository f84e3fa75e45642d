"""A rank of examples/torch-pipelining whose boundaries are timed; `benchmarks.hooks` starts it in place of train.py.

In every other iteration a bare send of as many bytes stands in the place of an instruction's boundary, to the same
process that waits for them: what a message costs at such a moment, whoever sends it.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perseus_api import names
from perseus_api.messages import BOUNDARY_BYTES, WELCOME_BYTES
from perseus_trainer import Session

EXAMPLE = Path(__file__).parents[1] / "examples" / "torch-pipelining"
Told = Callable[..., None]


class Times:
    """Of each iteration: what each boundary took, what of it was computing, and its length; in nanoseconds."""

    def __init__(self) -> None:
        self.boundaries: list[list[int]] = []
        self.computing: list[list[int]] = []
        self.iterations: list[int] = []

    def timed(self, function: Told, *arguments: Any) -> None:
        """Note how long a call takes, and how long it computes: on a busy machine others run in between."""
        computed, begin = time.thread_time_ns(), time.perf_counter_ns()
        function(*arguments)
        end = time.perf_counter_ns()
        self.boundaries[-1].append(end - begin)
        self.computing[-1].append(time.thread_time_ns() - computed)


def bare_send() -> Told:
    """Return what sends as many bytes as a boundary has to the process that serves the hooks, whatever it is given."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.connect(os.environ[names.ENV_SOCKET])
    agent.send(b"hello")
    agent.recv(WELCOME_BYTES)
    agent.setblocking(False)
    message = bytes(BOUNDARY_BYTES)

    def send(*_: Any) -> None:
        agent.send(message)

    return send


def main() -> None:
    """Run the example's script."""
    hooks, bare = Times(), Times()
    used = [(hooks, Session.mark), (bare, bare_send())]
    begin_iteration, end_iteration = Session.begin_iteration, Session.end_iteration
    begins: list[int] = []

    def begin(*arguments: Any) -> None:
        times, _ = used[len(begins) % 2]
        times.boundaries.append([])
        times.computing.append([])
        begins.append(time.perf_counter_ns())
        times.timed(begin_iteration, *arguments)

    def mark(*arguments: Any) -> None:
        times, function = used[(len(begins) - 1) % 2]
        times.timed(function, *arguments)

    def end(*arguments: Any) -> None:
        times, _ = used[(len(begins) - 1) % 2]
        times.timed(end_iteration, *arguments)
        times.iterations.append(time.perf_counter_ns() - begins[-1])
        if times is bare:  # Its iterations' own boundaries are no bare sends.
            del times.boundaries[-1][0], times.boundaries[-1][-1], times.computing[-1][0], times.computing[-1][-1]

    Session.begin_iteration, Session.end_iteration, Session.mark = begin, end, mark  # type: ignore[method-assign,assignment]
    sys.path.insert(0, str(EXAMPLE))
    runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
    folder, rank = Path(os.environ["PERSEUS_BENCHMARK_FOLDER"]), os.environ["PERSEUS_RANK"]
    found = {"hooks": vars(hooks), "bare": vars(bare)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
