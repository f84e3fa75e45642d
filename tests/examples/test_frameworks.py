"""The scripts for DeepSpeed and Megatron-Core train, two ranks each on CPU, and the agent's side is told."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Boundary, BoundaryKind, Hello, Verdict, Welcome

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ROOT / "tests" / "trainer" / "frameworks"
STAGES, MICROBATCHES, ITERATIONS = 2, 4, 6
TIMEOUT_SECONDS = 400.0  # on a machine that does much else


class Agents:
    """The agent's side, which serves everybody and counts the instructions of the last iteration."""

    def __init__(self, path: Path) -> None:
        self.told: dict[int, Counter[Instruction]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        hello = Hello.unpack(connection.recv(MAXIMUM_MESSAGE_BYTES))
        connection.send(Welcome(Verdict.SERVED).pack())
        self.told[hello.stage] = told = Counter()
        while packet := connection.recv(MAXIMUM_MESSAGE_BYTES):
            boundary = Boundary.unpack(packet)
            if boundary.iteration == ITERATIONS - 1 and boundary.kind is BoundaryKind.INSTRUCTION_END:
                assert boundary.instruction is not None
                told[boundary.instruction] += 1


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("script", "runner"),
    [("deepspeed", "deepspeed_uncompiled.py"), ("megatron-core", "on_cpu.py")],
)
def test_the_script_trains_and_the_agent_is_told(script: str, runner: str, tmp_path: Path) -> None:
    agents = Agents(tmp_path / "agent.sock")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank in range(STAGES):
        environment = {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "MASTER_PORT": str(port),
            names.ENV_SOCKET: str(tmp_path / "agent.sock"),
            names.ENV_NAMESPACE: "research",
            names.ENV_JOB: "gpt",
            names.ENV_RANK: str(rank),
            names.ENV_STAGES: str(STAGES),
            names.ENV_PIPELINES: "1",
            names.ENV_MICROBATCHES: str(MICROBATCHES),
            names.ENV_COORDINATOR: "127.0.0.1",
        }
        command = [sys.executable, FRAMEWORKS / runner, ROOT / "examples" / script / "train.py"]
        ranks.append(
            subprocess.Popen(
                [*command, "--iterations", str(ITERATIONS)],
                env=environment,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [rank.communicate(timeout=TIMEOUT_SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
        agents.close()
    assert [rank.returncode for rank in ranks] == [0] * STAGES, said
    losses = [float(each) for each in re.findall(r"iteration \d: loss ([\d.]+)", said[-1])]
    assert len(losses) == ITERATIONS
    assert losses[-1] < losses[0]
    expected = {Instruction.FORWARD: MICROBATCHES, Instruction.BACKWARD: MICROBATCHES}
    assert agents.told == dict.fromkeys(range(STAGES), expected)
