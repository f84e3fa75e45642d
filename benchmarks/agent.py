"""What a boundary costs: from the trainer's message to the NVML call, beside zeusd in the same run; `make bench-agent`.

Eight GPUs with 50 boundaries a second each, every one a change of clock, at moments drawn with a seed; a process of its
own keeps the other core busy. A boundary is two messages (an instruction ends, the next begins), sent by the trainer
library. The end of a measurement is the moment at which the call enters the simulated library, written down there, for
both programs alike; they take turns of a few seconds, each with its own eight GPUs of one node.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from perseus_api.plan import Plan
from perseus_simulator.node import KernelClient, SimulatedNode
from perseus_simulator.testing import example_profile
from perseus_trainer import Session, connect
from perseus_trainer.environment import Rank

from benchmarks.agent_edge import JOB, NAMESPACE, Agent, cpu_seconds, resident_megabytes
from benchmarks.zeusd import Zeusd
from tests.agent.agent_process import eventually

OUTPUT = Path("build/bench/agent.json")
GPUS, BOUNDARIES_PER_SECOND, JITTER = 8, 50, 0.4
TURN_SECONDS = 8.0  # the library's log keeps 512 calls of a GPU
CHANGES_PER_SECOND = 2.0 * BOUNDARIES_PER_SECOND
ORDER = "FB" * 8
CLOCKS = tuple(1410 - 15 * position for position in range(len(ORDER)))  # all different: each boundary is a change
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


def measure(folder: Path, turns: int, seed: int) -> dict[str, float | int]:
    """Run both programs in turns; return the figures."""
    node = SimulatedNode.create(folder / "node", example_profile(stages=GPUS), 2 * GPUS)
    ours, theirs = node.gpus[:GPUS], node.gpus[GPUS:]
    clients = [KernelClient(node, gpu.uuid) for gpu in node.gpus]
    agent = Agent(folder, node, [gpu.uuid for gpu in ours], _plan(), CHANGES_PER_SECOND)
    zeusd = Zeusd(folder, node, [gpu.index for gpu in theirs])
    last = max(os.sched_getaffinity(0))
    busy = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{last}}})\nwhile True: pass"])
    try:
        ranks = [_Rank(agent.socket, stage, gpu.uuid) for stage, gpu in enumerate(ours)]
        eventually(lambda: all(rank.session.connected for rank in ranks), "every rank is served", 30)
        asking = [_Asking(zeusd, gpu.index) for gpu in theirs]
        agent_times, zeusd_times, spent, chance = _Times(), _Times(), [0.0, 0.0], random.Random(seed)
        for turn in range(turns + 1):
            for side, (senders, gpus, times, pid) in enumerate(
                ((ranks, ours, agent_times, agent.pid), (asking, theirs, zeusd_times, zeusd.pid))
            ):
                zeusd.reconnect()
                before = cpu_seconds(pid)
                since = [_next_sequence(gpu) for gpu in gpus]
                sent = _turn([sender.boundary for sender in senders], chance)
                spent[side] += cpu_seconds(pid) - before
                time.sleep(0.2)
                calls = [gpu.clock_calls(first) for gpu, first in zip(gpus, since, strict=True)]
                times.take(sent, calls)
            agent.scrape()
            if turn == 0:  # the first turn of each warms up and is not counted
                agent_times, zeusd_times, spent = _Times(), _Times(), [0.0, 0.0]
        mine, other = agent_times.sorted(), zeusd_times.sorted()
        hooks = sorted(agent_times.hooks)
        seconds = turns * TURN_SECONDS
        return {
            "call_p50_seconds": _at(mine, 0.5),
            "call_p99_seconds": _at(mine, 0.99),
            "zeusd_p50_seconds": _at(other, 0.5),
            "zeusd_p99_seconds": _at(other, 0.99),
            "ratio_to_zeusd_p50": round(_at(mine, 0.5) / _at(other, 0.5), 3),
            "ratio_to_zeusd_p99": round(_at(mine, 0.99) / _at(other, 0.99), 3),
            "hook_p50_seconds": _at(hooks, 0.5),
            "hook_p99_seconds": _at(hooks, 0.99),
            "cpu_percent": round(100 * spent[0] / seconds, 2),
            "zeusd_cpu_percent": round(100 * spent[1] / seconds, 2),
            "megabytes": round(resident_megabytes(agent.pid), 1),
            "samples": len(mine),
            "zeusd_samples": len(other),
            "superseded": agent_times.superseded,
            "zeusd_superseded": zeusd_times.superseded,
            "seed": seed,
        }
    finally:
        busy.kill()
        zeusd.stop()
        agent.stop()
        for client in clients:
            client.close()
        node.close()


class _Times:
    """Nanoseconds of everything that was measured."""

    def __init__(self) -> None:
        self.superseded = 0
        self.hooks: list[int] = []
        self._calls: list[int] = []

    def take(self, sent: list[list[tuple[int, int, int]]], calls: list[list]) -> None:
        """Match what was sent to a GPU (begin, end, clock) with the calls that reached the device."""
        for messages, reached in zip(sent, calls, strict=True):
            self.hooks += [end - begin for begin, end, _ in messages]
            position = 0
            for number, (begin, _, clock) in enumerate(messages):
                # A clock comes again only after a whole round: a call before that is this message's.
                limit = messages[number + len(CLOCKS) - 1][0] if number + len(CLOCKS) - 1 < len(messages) else 2**63
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

    def sorted(self) -> list[int]:
        """The times from message to call."""
        return sorted(self._calls)


class _Rank:
    """One rank of the job, with the trainer library."""

    def __init__(self, socket: Path, stage: int, gpu: str) -> None:
        self.session: Session = connect(Rank(NAMESPACE, JOB, 0, stage, 0, gpu), str(socket))
        self._position = 0
        self._iteration: AbstractContextManager[None] | None = None
        self._instruction: AbstractContextManager[None] | None = None

    def boundary(self) -> tuple[int, int, int]:
        """End an instruction and begin the next; return begin and end of the hooks, and the clock that follows."""
        begin = time.monotonic_ns()
        if self._instruction is not None:
            self._instruction.__exit__(None, None, None)
            self._position = (self._position + 1) % len(ORDER)
        if self._position == 0:
            if self._iteration is not None:
                self._iteration.__exit__(None, None, None)
            self._iteration = self.session.iteration()
            self._iteration.__enter__()
        self._instruction = self.session.instruction(NAMES[ORDER[self._position]])
        self._instruction.__enter__()
        end = time.monotonic_ns()
        return begin, end, CLOCKS[self._position]


class _Asking:
    """The same requests to zeusd."""

    def __init__(self, zeusd: Zeusd, index: int) -> None:
        self._zeusd = zeusd
        self._index = index
        self._requests = [zeusd.request(index, clock) for clock in CLOCKS]
        self._position = -1

    def boundary(self) -> tuple[int, int, int]:
        """Ask for the next clock; return begin and end of the sending, and the clock."""
        self._position = (self._position + 1) % len(CLOCKS)
        begin = time.monotonic_ns()
        self._zeusd.send(self._index, self._requests[self._position])
        return begin, time.monotonic_ns(), CLOCKS[self._position]


def _turn(senders: list[Callable[[], tuple[int, int, int]]], chance: random.Random) -> list[list[tuple[int, int, int]]]:
    """Let every sender send at its own moments for one turn; return what each sent."""
    period = 1 / BOUNDARIES_PER_SECOND
    start = time.monotonic()
    due = [(start + chance.uniform(0, period), index) for index in range(len(senders))]
    heapq.heapify(due)
    sent: list[list[tuple[int, int, int]]] = [[] for _ in senders]
    while True:
        moment, index = due[0]
        if moment > start + TURN_SECONDS:
            return sent
        wait = moment - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        sent[index].append(senders[index]())
        heapq.heapreplace(due, (moment + chance.uniform(1 - JITTER, 1 + JITTER) * period, index))


def _next_sequence(gpu: object) -> int:
    calls = gpu.clock_calls()
    return calls[-1].sequence + 1 if calls else 0


def _at(times: list[int], share: float) -> float:
    return round(times[int(share * (len(times) - 1))] / 1e9, 7)


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
