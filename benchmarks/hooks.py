"""What an instruction's hook costs the training process: without an agent, with one that reads, and in real training.

In real training (examples/torch-pipelining: four gloo processes, real torch, simulated devices at their real speed, an
agent that reads) every boundary is timed where it is told, and the sum is put against the iterations' length. Bare
sends of as many bytes take turns with them.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import perseus_trainer
from perseus_api import names
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Verdict, Welcome
from perseus_trainer.environment import Rank

_EXAMPLE = Path(__file__).parents[1] / "examples" / "torch-pipelining" / "run.py"
_ITERATIONS, _WARM_UP = 50, 3
_BATCHES, _HOOKS = 9, 2000
_RANK = Rank("team", "train", 0, 0, 0, "")


def measure() -> list[dict[str, object]]:
    """Return nanoseconds for each hook (begin and end, median over batches), and what boundaries cost in training."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agent.sock"
        context = multiprocessing.get_context("spawn")
        agent = context.Process(target=_read_everything, args=(str(path),), daemon=True)
        agent.start()
        served = perseus_trainer.connect(_RANK, str(path))
        while not served.connected:
            time.sleep(0.01)
        rows: list[dict[str, object]] = [
            {"agent": "none", "nanoseconds": _median(perseus_trainer.connect(_RANK, ""))},
            {"agent": "reading", "nanoseconds": _median(served)},
        ]
        rows.append(_in_training(Path(folder), path))
        agent.terminate()
    return rows


def _in_training(folder: Path, agent: Path) -> dict[str, object]:
    """Train in real torch; return percentiles of a boundary's cost, and the share of an iteration that they take."""
    environment = {**os.environ, names.ENV_SOCKET: str(agent), "PERSEUS_BENCHMARK_FOLDER": str(folder)}
    command = [sys.executable, str(_EXAMPLE), "--iterations", str(_ITERATIONS), "--time-scale", "1"]
    script = Path(__file__).with_name("timed_rank.py")
    subprocess.run(
        [*command, "--script", str(script), "--order", str(folder / "order.json")],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    row: dict[str, object] = {"agent": "reading, in training"}
    for sender, name in (("hooks", "boundary"), ("bare", "bare_send")):
        for kind, suffix in (("boundaries", ""), ("computing", "_computing")):
            told = [iteration for rank in ranks for iteration in rank[sender][kind][_WARM_UP:]]
            each = sorted(itertools.chain.from_iterable(told))
            row[f"{name}{suffix}_p50_microseconds"] = round(each[len(each) // 2] / 1000, 1)
            row[f"{name}{suffix}_p99_microseconds"] = round(each[len(each) * 99 // 100] / 1000, 1)
            if sender == "hooks":
                lengths = [length for rank in ranks for length in rank[sender]["iterations"][_WARM_UP:]]
                row[f"{name}{suffix}_share_of_iteration_percent"] = round(100 * sum(each) / sum(lengths), 4)
                row["boundaries"], row["iteration_seconds"] = len(each), round(statistics.median(lengths) / 1e9, 3)
    return row


def _median(session: perseus_trainer.Session) -> int:
    batches = []
    with session.iteration():
        for _ in range(_BATCHES):
            begin = time.perf_counter_ns()
            for microbatch in range(_HOOKS):
                with session.instruction("forward", microbatch=microbatch):
                    pass
            batches.append((time.perf_counter_ns() - begin) / _HOOKS)
    return round(statistics.median(batches))


def _read_everything(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_read, args=(connection,), daemon=True).start()


def _read(connection: socket.socket) -> None:
    connection.recv(MAXIMUM_MESSAGE_BYTES)
    connection.send(Welcome(Verdict.SERVED).pack())
    while connection.recv(MAXIMUM_MESSAGE_BYTES):
        pass
