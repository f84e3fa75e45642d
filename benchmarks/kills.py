"""A thousand deaths at random moments: no lock may stay, and nobody else's GPU may be touched; `make bench-kills`.

Two jobs of four ranks train on eight simulated GPUs under random plans. In each round some of them die: trainers by
SIGKILL, pods by deletion, plans by withdrawal, the agent by SIGKILL, with its trainers or without, with its watchdog or
without. After each death every clock of the dead must be free within five seconds (of the agent's restart, where the
watchdog died too). Eight more GPUs belong to somebody who has locked them: their locks and NVML calls tell who touched
them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from perseus_api.names import plan_config_map_name
from perseus_api.plan import Plan
from perseus_simulator.node import SimulatedGpu, SimulatedNode
from perseus_simulator.testing import example_profile, simulator_environment

from benchmarks.nursery import Nursery
from tests.agent.agent_process import RELEASE_SECONDS, AgentProcess, Kubelet, eventually, uid

OUTPUT = Path("build/bench/kills.json")
JOBS, STAGES = ("gpt", "llama"), 4
GPUS = len(JOBS) * STAGES
BYSTANDERS = 8
CLOCKS = tuple(range(405, 1411, 15))
LOCK_WAIT_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 0.2


@dataclass
class Outcome:
    """What the run has seen.

    Attributes:
        kinds: kills by kind.
        locked: how many kills met a GPU that was locked (the others met one between two plans, or not yet served).
        left: GPUs not free in time, as ``kind: UUID``.
        worst_seconds: by kind, the longest time from a death, or the agent's restart, to the last of its clocks free.
    """

    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    locked: int = 0
    left: list[str] = field(default_factory=list)
    worst_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """How many there were."""
        return self.kinds.total()


def main() -> int:
    """Run, write the figures, print them; fail if a lock stayed or a bystander was touched."""
    parser = argparse.ArgumentParser(prog="make bench-kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), arguments.kills, arguments.seed, progress=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 1 if figures["locks_left"] or figures["bystanders_touched"] else 0


def run(folder: Path, kills: int, seed: int, *, progress: bool = False) -> dict[str, object]:
    """Kill at least so many times; return the figures."""
    begin = time.monotonic()
    node = SimulatedNode.create(folder / "node", example_profile(), GPUS + BYSTANDERS)
    for number, gpu in enumerate(node.gpus[GPUS:]):
        gpu.foreign_lock(600 + number, 900 + number)
    world = _World(folder, node, random.Random(seed))
    told = 0
    try:
        world.begin()
        while world.outcome.kills < kills:
            world.round()
            if progress and world.outcome.kills // 100 > told:
                told = world.outcome.kills // 100
                print(f"{world.outcome.kills} kills, {len(world.outcome.left)} locks left", file=sys.stderr, flush=True)
    finally:
        left = world.end()
    outcome = world.outcome
    touched = [
        gpu.uuid
        for number, gpu in enumerate(node.gpus[GPUS:])
        if gpu.locked_range() != (600 + number, 900 + number) or gpu.clock_calls()
    ]
    calls = sum(gpu.calls["set_locked_clocks"] for gpu in node.gpus[:GPUS])
    node.close()
    return {
        "kills": outcome.kills,
        "kinds": dict(sorted(outcome.kinds.items())),
        "locked_when_killed": outcome.locked,
        "locks_left": len(outcome.left) + len(left),
        "left": outcome.left + left,
        "bystanders_touched": len(touched),
        "worst_release_seconds": round(max(outcome.worst_seconds.values()), 3),
        "worst_by_kind_seconds": {kind: round(worst, 3) for kind, worst in sorted(outcome.worst_seconds.items())},
        "clock_calls": calls,
        "seconds": round(time.monotonic() - begin, 1),
        "seed": seed,
    }


@dataclass
class _Rank:
    """One rank of a job: its place, and the process that trains there now."""

    number: int
    job: str
    stage: int
    gpu: SimulatedGpu
    order: str
    pid: int = 0
    pod: int = 0
    fits: bool = True  # its plan has the order that it trains in


class _World:
    """The node, its agent and watchdog, and the jobs on it."""

    def __init__(self, folder: Path, node: SimulatedNode, chance: random.Random) -> None:
        self.outcome = Outcome()
        self._folder = folder
        self._chance = chance
        self._environment = simulator_environment(node)
        self._kubelet = Kubelet(folder)
        self._agent = AgentProcess(folder, self._environment)
        self._nursery = Nursery(folder)
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._ranks = [
            _Rank(job * STAGES + stage, name, stage, node.gpus[job * STAGES + stage], self._order())
            for job, name in enumerate(JOBS)
            for stage in range(STAGES)
        ]
        self._plans: dict[str, Plan] = {}
        self._generation = 0
        self._pods = 0

    def begin(self) -> None:
        """Start the agent and its watchdog."""
        self._start_watchdog()
        self._agent.start()

    def end(self) -> list[str]:
        """Stop everything; return the GPUs that are still locked, and what the journal still names."""
        for rank in self._ranks:
            if rank.pid:
                _kill(rank.pid)
        with contextlib.suppress(AssertionError, OSError, ValueError):
            self._agent.stop()
        self._agent.kill()
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
        self._nursery.close()
        self._kubelet.stop()
        locked = [f"end: {rank.gpu.uuid}" for rank in self._ranks if rank.gpu.locked_range()]
        return locked + [f"journal: {name}" for name in self._agent.journalled]

    def round(self) -> None:
        """Bring everybody to life, wait for a random moment, and let some of them die."""
        self._bring_to_life()
        if self._chance.random() < 0.8:
            self._wait_for_locks()
        time.sleep(self._chance.uniform(0, LONGEST_PAUSE_SECONDS))
        if self._chance.random() < 0.35:
            self._kill_agent()
        else:
            self._kill_others()

    def _bring_to_life(self) -> None:
        fresh = [rank for rank in self._ranks if not rank.pid]
        for rank in fresh:
            rank.pod = self._pods
            self._pods += 1
        if fresh:
            self._kubelet.devices = [(_pod(rank), "nvidia.com/gpu", rank.gpu.uuid) for rank in self._ranks]
        for rank in fresh:
            self._announce(rank)
            rank.pid = self._nursery.start(
                rank.job, rank.stage, rank.gpu.uuid, rank.order, self._chance.randrange(2**32)
            )
            self._agent.is_in_pod(rank.pid, uid(rank.pod))
        for job in JOBS:
            if job not in self._plans or self._chance.random() < 0.6:
                self._plans[job] = self._plan(job)
                self._push(job)

    def _wait_for_locks(self) -> None:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while time.monotonic() < deadline and not all(rank.gpu.locked_range() for rank in self._ranks if rank.fits):
            time.sleep(0.01)

    def _kill_others(self) -> None:
        """Trainers, pods and plans, in random order, one right after the other."""
        deaths: list[tuple[str, list[_Rank], str]] = []
        for rank in self._ranks:
            kind = self._chance.choice(["trainer", "trainer", "pod", ""])
            if kind:
                deaths.append((kind, [rank], rank.job))
        if self._chance.random() < 0.7:
            job = self._chance.choice(JOBS)
            deaths.append(("plan", [rank for rank in self._ranks if rank.job == job], job))
        self._chance.shuffle(deaths)
        dying: list[tuple[str, _Rank, float]] = []
        for kind, ranks, job in deaths:
            self._count(kind, ranks)
            begin = time.monotonic()
            if kind == "trainer":
                self._bury(ranks[0])
            elif kind == "pod":
                self._agent.ask(do="gone", uid=uid(ranks[0].pod))
            else:
                del self._plans[job]
                self._agent.ask(do="withdraw", name=plan_config_map_name("research", job))
            dying += [(kind, rank, begin) for rank in ranks]
            if self._chance.random() < 0.5:
                time.sleep(self._chance.uniform(0, 0.02))
        self._expect_free(dying)
        for kind, ranks, _ in deaths:
            if kind == "pod":
                self._bury(ranks[0])  # its processes die last
            if kind != "plan":
                self._forget(ranks[0])

    def _kill_agent(self) -> None:
        dead = [rank for rank in self._ranks if self._chance.random() < 0.3] if self._chance.random() < 0.5 else []
        watched = self._chance.random() < 0.5
        if watched:
            eventually(self._watchdog_waits, "the watchdog waits for the agent's death", 60)
        self._count(("agent and trainers" if dead else "agent") + ("" if watched else " and watchdog"), self._ranks)
        killings = [lambda rank=rank: self._bury(rank) for rank in dead] + [self._agent.kill]
        if not watched and self._watchdog is not None:
            killings.insert(0, self._watchdog.kill)  # first, or it would do its work
        begin = time.monotonic()
        for kill in killings if not watched else self._chance.sample(killings, len(killings)):
            kill()
        if watched:
            self._expect_free([("agent", rank, begin) for rank in self._ranks])
            self._agent.start()
        else:
            starting = threading.Thread(target=self._agent.start)
            begin = time.monotonic()
            starting.start()
            self._expect_free([("agent and watchdog", rank, begin) for rank in self._ranks])
            starting.join()
            self._start_watchdog()
        for rank in dead:
            self._forget(rank)
        for rank in self._ranks:
            if rank.pid:
                self._announce(rank)
        for job in self._plans:
            self._push(job)

    def _expect_free(self, dying: list[tuple[str, _Rank, float]]) -> None:
        while dying:
            now = time.monotonic()
            for death in list(dying):
                kind, rank, begin = death
                if now - begin > RELEASE_SECONDS:
                    self.outcome.left.append(f"{kind}: {rank.gpu.uuid}")
                    rank.gpu.foreign_reset()  # counted once
                elif rank.gpu.locked_range() is not None:
                    continue
                worst = self.outcome.worst_seconds
                worst[kind] = max(worst.get(kind, 0.0), now - begin)
                dying.remove(death)
            time.sleep(0.001)

    def _count(self, kind: str, ranks: list[_Rank]) -> None:
        self.outcome.kinds[kind] += 1
        self.outcome.locked += any(rank.gpu.locked_range() for rank in ranks)

    def _start_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.wait()
        environment = {**self._environment, "PERSEUS_JOURNAL_FOLDER": str(self._folder / "journal")}
        command = [sys.executable, "-m", "perseus_daemonset.main", "watchdog"]
        self._watchdog = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def _watchdog_waits(self) -> bool:
        """The kernel says that it stands in line for the agent's file lock."""
        assert self._watchdog is not None
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any("->" in line and str(self._watchdog.pid) in line for line in lines)

    def _announce(self, rank: _Rank) -> None:
        pod = {
            "uid": uid(rank.pod), "namespace": "research", "name": _pod(rank), "phase": "Running", "job": rank.job,
            "job_uid": f"uid-of-{rank.job}", "rank": rank.stage, "stages": STAGES, "tensor_parallel": 1,
        }  # fmt: skip
        self._agent.ask(do="pod", pod=pod)

    def _push(self, job: str) -> None:
        self._agent.plan(self._plans[job], plan_config_map_name("research", job))

    def _bury(self, rank: _Rank) -> None:
        if rank.pid:
            _kill(rank.pid)
            rank.pid = 0

    def _forget(self, rank: _Rank) -> None:
        """The API forgets a dead rank's pod."""
        self._agent.ask(do="gone", uid=uid(rank.pod))

    def _order(self) -> str:
        return "".join(self._chance.choice("FBIW") for _ in range(self._chance.randint(2, 6)))

    def _plan(self, job: str) -> Plan:
        self._generation += 1
        orders = [rank.order for rank in self._ranks if rank.job == job]
        if self._chance.random() < 0.1:
            orders[self._chance.randrange(STAGES)] = self._order()  # one that its trainer will not follow
        for rank in self._ranks:
            if rank.job == job:
                rank.fits = orders[rank.stage] == rank.order
        clocks = [[self._chance.choice(CLOCKS) for _ in order] for order in orders]
        return Plan.model_validate(
            {
                "job": {"namespace": "research", "name": job, "uid": f"uid-of-{job}"},
                "generation": self._generation,
                "firstIteration": 0,
                "order": orders,
                "variants": [{"name": "objective", "iterationSeconds": 1.0, "iterationJoules": 9.0, "clocks": clocks}],
                "pipelines": [0],
                "baseline": {"iterationSeconds": 1.0, "stageJoules": [5.0] * STAGES, "blockingPowerWatts": 80.0},
            }
        )


def _pod(rank: _Rank) -> str:
    return f"{rank.job}-{rank.stage}-{rank.pod}"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
