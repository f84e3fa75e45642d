"""What a boundary costs: from the trainer's message to the NVML call, beside zeusd in the same run; `make bench-agent`.

Eight GPUs with 50 boundaries a second each, every one a change of clock, at moments drawn with a seed; a process of its
own keeps the other core busy. A boundary is two messages (an instruction ends, the next begins), sent by the trainer
library. A measurement goes from the moment before a message is made to the moment at which the call enters the
simulated library, written down there, for both programs alike; they take turns of a few seconds, each with its own
eight GPUs of one node. A hook is one call of the trainer library, one message. What a hook costs beyond the message
shows beside bare sends of as many bytes, at the same moments, to a process that reads and does nothing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from perseus_api.messages import BOUNDARY_BYTES
from perseus_api.plan import Plan
from perseus_simulator.node import ClockCall, KernelClient, SimulatedGpu, SimulatedNode
from perseus_simulator.testing import example_profile
from perseus_trainer import Session, connect
from perseus_trainer.environment import Rank

from benchmarks.agent_edge import JOB, NAMESPACE, Agent, Reader, cpu_seconds, resident_megabytes, shipped_python
from benchmarks.zeusd import Zeusd
from tests.agent.agent_process import eventually

OUTPUT = Path("build/bench/agent.json")
GPUS, BOUNDARIES_PER_SECOND, JITTER = 8, 50, 0.4
TURN_SECONDS = 8.0  # the library's log keeps 512 calls of a GPU
CHANGES_PER_SECOND = 2.0 * BOUNDARIES_PER_SECOND
ORDER = "FB" * 8
CLOCKS = tuple(1410 - 15 * position for position in range(len(ORDER)))  # all different: each boundary is a change
SCHEDULERS = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO"}
BUSY = """
import os
os.sched_setaffinity(0, {{{}}})
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
while True:
    pass
"""
MESSAGE = bytes(BOUNDARY_BYTES)
NAMES = {"F": "forward", "B": "backward"}


def main() -> int:
    """Measure, write the figures, print them."""
    parser = argparse.ArgumentParser(prog="make bench-agent", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=6, help="turns of each program")
    parser.add_argument("--seed", type=int, default=20261124)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.turns, arguments.seed)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:28} {value}")
    return 0


def measure(folder: Path, turns: int, seed: int) -> dict[str, float | int | str]:
    """Run all programs in turns; return the figures."""
    node = SimulatedNode.create(folder / "node", example_profile(stages=GPUS), 2 * GPUS)
    ours, theirs = node.gpus[:GPUS], node.gpus[GPUS:]
    clients = [KernelClient(node, gpu.uuid) for gpu in node.gpus]
    agent = Agent(folder, node, [gpu.uuid for gpu in ours], _plan(), CHANGES_PER_SECOND)
    zeusds = [Zeusd(folder, node, [gpu.index for gpu in theirs], silent=silent) for silent in (False, True)]
    reader = Reader(GPUS)
    busy = subprocess.Popen([sys.executable, "-c", BUSY.format(max(os.sched_getaffinity(0)))])
    try:
        ranks = [_Rank(agent.socket, stage, gpu.uuid) for stage, gpu in enumerate(ours)]
        eventually(lambda: all(rank.session.connected for rank in ranks), "every rank is served", 30)
        sides = [_Side(agent.pid, ranks, ours)]
        sides += [_Side(zeusd.pid, [_Asking(zeusd, gpu.index) for gpu in theirs], theirs) for zeusd in zeusds]
        sides += [_Side(reader.pid, [_Sending(each) for each in reader.connections], ())]
        chance = random.Random(seed)
        for turn in range(turns + 1):
            for side in sides:
                for zeusd in zeusds:
                    zeusd.reconnect()
                side.turn(chance)
                if turn == 0:  # the first turn of each warms up and is not counted
                    side.forget()
            agent.scrape()
        mine, shipped, silent, bare = (side.times for side in sides)
        if not mine.count:
            raise RuntimeError("no boundary reached the device: the agent follows no plan")
        return {
            "call_p50_seconds": mine.calls(0.5),
            "call_p99_seconds": mine.calls(0.99),
            "ratio_to_zeusd_p50": round(mine.calls(0.5) / shipped.calls(0.5), 3),
            "ratio_to_zeusd_p99": round(mine.calls(0.99) / shipped.calls(0.99), 3),
            "hook_p50_seconds": mine.hooks(0.5),
            "hook_p99_seconds": mine.hooks(0.99),
            "bare_send_p50_seconds": bare.hooks(0.5),
            "bare_send_p99_seconds": bare.hooks(0.99),
            "cpu_percent": sides[0].cpu_percent(turns),
            "reader_cpu_percent": sides[3].cpu_percent(turns),
            "megabytes": round(resident_megabytes(agent.pid), 1),
            "samples": mine.count,
            "superseded": mine.superseded,
            "zeusd_p50_seconds": shipped.calls(0.5),
            "zeusd_p99_seconds": shipped.calls(0.99),
            "zeusd_cpu_percent": sides[1].cpu_percent(turns),
            "silent_zeusd_p50_seconds": silent.calls(0.5),
            "silent_zeusd_p99_seconds": silent.calls(0.99),
            "silent_zeusd_cpu_percent": sides[2].cpu_percent(turns),
            "ratio_to_silent_zeusd_p50": round(mine.calls(0.5) / silent.calls(0.5), 3),
            "ratio_to_silent_zeusd_p99": round(mine.calls(0.99) / silent.calls(0.99), 3),
            "python": Path(shipped_python()).name,
            "scheduler": SCHEDULERS.get(os.sched_getscheduler(0), "other"),
            "load_average": round(os.getloadavg()[0], 1),
            "seed": seed,
        }
    finally:
        busy.kill()
        reader.stop()
        for zeusd in zeusds:
            zeusd.stop()
        agent.stop()
        for client in clients:
            client.close()
        node.close()


class _Side:
    """One of the programs: its process, who sends to it, its GPUs, and what was measured."""

    def __init__(self, pid: int, senders: Sequence[_Sender], gpus: Sequence[SimulatedGpu]) -> None:
        self.times = _Times()
        self._pid = pid
        self._senders = senders
        self._gpus = gpus
        self._spent = 0.0

    def turn(self, chance: random.Random) -> None:
        """Send for one turn, and read what came of it."""
        before = cpu_seconds(self._pid)
        since = [_next_sequence(gpu) for gpu in self._gpus]
        sent = _turn([sender.boundary for sender in self._senders], chance)
        self._spent += cpu_seconds(self._pid) - before
        time.sleep(0.2)
        reached = [gpu.clock_calls(first) for gpu, first in zip(self._gpus, since, strict=True)]
        self.times.take(sent, reached or [[] for _ in sent])

    def forget(self) -> None:
        """Begin to measure anew."""
        self.times, self._spent = _Times(), 0.0

    def cpu_percent(self, turns: int) -> float:
        """Processor time of the program, in percent of one core."""
        return round(100 * self._spent / (turns * TURN_SECONDS), 2)


class _Sender(Protocol):
    """Sends at a boundary."""

    def boundary(self) -> Sent:
        """Send; return what was sent."""


class Sent(NamedTuple):
    """What was sent at a boundary: when it began, the clock that follows, and what each message cost its sender."""

    begin_nanoseconds: int
    clock: int
    hooks_nanoseconds: tuple[int, ...]


class _Times:
    """Nanoseconds of everything that was measured."""

    def __init__(self) -> None:
        self.superseded = 0
        self._hooks: list[int] = []
        self._calls: list[int] = []

    @property
    def count(self) -> int:
        """How many messages were matched with their calls."""
        return len(self._calls)

    def take(self, sent: list[list[Sent]], calls: list[list[ClockCall]]) -> None:
        """Match what was sent to a GPU with the calls that reached the device."""
        for messages, reached in zip(sent, calls, strict=True):
            position = 0
            for number, (begin, clock, hooks) in enumerate(messages):
                self._hooks += hooks
                # A clock comes again only after a whole round: a call before that is this message's.
                limit = (
                    messages[number + len(CLOCKS) - 1].begin_nanoseconds
                    if number + len(CLOCKS) - 1 < len(messages)
                    else 2**63
                )
                while position < len(reached) and reached[position].received_nanoseconds < begin:
                    position += 1
                found = position
                while found < len(reached) and reached[found].received_nanoseconds < limit:
                    if reached[found].clock_range == (clock, clock):
                        break
                    found += 1
                else:
                    self.superseded += 1
                    continue
                self._calls.append(reached[found].received_nanoseconds - begin)

    def calls(self, share: float) -> float:
        """Seconds from message to call that a share of them needed at most."""
        return _at(self._calls, share)

    def hooks(self, share: float) -> float:
        """Seconds of one hook that a share of them needed at most."""
        return _at(self._hooks, share)


class _Rank:
    """One rank of the job, with the trainer library."""

    def __init__(self, socket: Path, stage: int, gpu: str) -> None:
        self.session: Session = connect(Rank(NAMESPACE, JOB, 0, stage, 0, gpu), str(socket))
        self._position = 0
        self._iteration: AbstractContextManager[None] | None = None
        self._instruction: AbstractContextManager[None] | None = None

    def boundary(self) -> Sent:
        """End an instruction and begin the next."""
        begin = time.monotonic_ns()
        if self._instruction is not None:
            self._instruction.__exit__(None, None, None)
            self._position = (self._position + 1) % len(ORDER)
        ended = time.monotonic_ns()
        if self._position == 0:
            if self._iteration is not None:
                self._iteration.__exit__(None, None, None)
            self._iteration = self.session.iteration()
            self._iteration.__enter__()
        begun = time.monotonic_ns()
        self._instruction = self.session.instruction(NAMES[ORDER[self._position]])
        self._instruction.__enter__()
        return Sent(begin, CLOCKS[self._position], (ended - begin, time.monotonic_ns() - begun))


class _Asking:
    """The same requests to zeusd."""

    def __init__(self, zeusd: Zeusd, index: int) -> None:
        self._zeusd = zeusd
        self._index = index
        self._position = -1

    def boundary(self) -> Sent:
        """Ask for the next clock."""
        self._position = (self._position + 1) % len(CLOCKS)
        self._zeusd.read_answers(self._index)
        begin = time.monotonic_ns()
        self._zeusd.send(self._index, CLOCKS[self._position])
        return Sent(begin, CLOCKS[self._position], (time.monotonic_ns() - begin,))


class _Sending:
    """As many bytes as a boundary's two messages, and nothing else."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def boundary(self) -> Sent:
        """Send two messages."""
        begin = time.monotonic_ns()
        self._connection.send(MESSAGE)
        middle = time.monotonic_ns()
        self._connection.send(MESSAGE)
        return Sent(begin, 0, (middle - begin, time.monotonic_ns() - middle))


def _turn(senders: list[Callable[[], Sent]], chance: random.Random) -> list[list[Sent]]:
    """Let every sender send at its own moments for one turn; return what each sent."""
    period = 1 / BOUNDARIES_PER_SECOND
    start = time.monotonic()
    due = [(start + chance.uniform(0, period), index) for index in range(len(senders))]
    heapq.heapify(due)
    sent: list[list[Sent]] = [[] for _ in senders]
    while True:
        moment, index = due[0]
        if moment > start + TURN_SECONDS:
            return sent
        wait = moment - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        sent[index].append(senders[index]())
        heapq.heapreplace(due, (moment + chance.uniform(1 - JITTER, 1 + JITTER) * period, index))


def _next_sequence(gpu: SimulatedGpu) -> int:
    calls = gpu.clock_calls()
    return calls[-1].sequence + 1 if calls else 0


def _at(times: list[int], share: float) -> float:
    return round(sorted(times)[int(share * (len(times) - 1))] / 1e9, 7)


def _plan() -> Plan:
    return Plan.model_validate(
        {
            "job": {"namespace": NAMESPACE, "name": JOB, "uid": "job-1"},
            "generation": 1,
            "firstIteration": 0,
            "order": [ORDER] * GPUS,
            "variants": [
                {"name": "objective", "iterationSeconds": 0.3, "iterationJoules": 9.0, "clocks": [CLOCKS] * GPUS}
            ],
            "pipelines": [0],
            "baseline": {"iterationSeconds": 0.3, "stageJoules": [5.0] * GPUS, "blockingPowerWatts": 80.0},
        }
    )


if __name__ == "__main__":
    sys.exit(main())
