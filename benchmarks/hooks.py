"""What an instruction's hook costs the training process: without an agent, and with one that reads."""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import tempfile
import time
from pathlib import Path

import perseus_trainer
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Verdict, Welcome
from perseus_trainer.environment import Rank

_BATCHES, _HOOKS = 9, 2000
_RANK = Rank("team", "train", 0, 0, 0, "")


def measure() -> list[dict[str, object]]:
    """Return the median over batches of nanoseconds for each hook (a begin and an end)."""
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
        agent.terminate()
    return rows


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
        connection, _ = listener.accept()
        connection.recv(MAXIMUM_MESSAGE_BYTES)
        connection.send(Welcome(Verdict.SERVED).pack())
        while connection.recv(MAXIMUM_MESSAGE_BYTES):
            pass
