"""Ranks of one job as processes forked from one that has imported the framework: an import costs seconds."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import sys
from collections.abc import Callable

GRACE_SECONDS = 5.0


def run_ranks(count: int, main: Callable[[int], None]) -> None:
    """Run `main` with each rank; end the process with status 1, and the other ranks, if one fails."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=main, args=(rank,)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    waiting = {rank.sentinel: rank for rank in ranks}
    while waiting:
        for sentinel in multiprocessing.connection.wait(list(waiting)):
            ended = waiting.pop(sentinel)  # type: ignore[call-overload]
            ended.join()
            if ended.exitcode:
                for other in waiting.values():
                    other.join(GRACE_SECONDS)
                    other.kill()
                sys.exit(1)
