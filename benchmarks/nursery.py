"""Trainers that can be killed by the thousand: each a process of its own, forked from one that has loaded the library.

One line of JSON asks for a trainer, one line answers with its process id. A trainer waits until somebody has put it
into a pod (its control group's file exists), then runs its instructions in iterations without end, with the real
trainer library, at its own random pace. Run as ``python -m benchmarks.nursery``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import perseus_trainer
from perseus_api.instructions import Instruction
from perseus_trainer.environment import Rank

LONGEST_INSTRUCTION_SECONDS = 0.03


class Nursery:
    """Starts trainers."""

    def __init__(self, folder: Path) -> None:
        """Start the process that forks them; its agent's socket and its control groups are in a folder."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nursery", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def start(self, job: str, stage: int, gpu: str, order: str, seed: int) -> int:
        """Start a trainer; return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([job, stage, gpu, order, seed]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Start no more."""
        self._process.communicate()


def main() -> None:
    """Fork a trainer for each line."""
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    parent = os.getpid()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyboardInterrupt):
                _train(folder, parent, *json.loads(line))
            os._exit(0)
        print(child, flush=True)


def _train(folder: Path, parent: int, job: str, stage: int, gpu: str, order: str, seed: int) -> None:
    group = folder / "proc" / str(os.getpid()) / "cgroup"
    while not group.exists():
        time.sleep(0.002)
    chance = random.Random(seed)
    session = perseus_trainer.connect(Rank("research", job, 0, stage, 0, gpu), str(folder / "agent.sock"))
    instructions = [Instruction.from_code(letter) for letter in order]
    while os.getppid() == parent:
        with session.iteration():
            for instruction in instructions:
                with session.instruction(instruction):
                    time.sleep(chance.uniform(0, LONGEST_INSTRUCTION_SECONDS))


if __name__ == "__main__":
    main()
