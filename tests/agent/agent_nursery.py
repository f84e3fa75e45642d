"""Agents by the hundred: forked from one process that has loaded what an agent loads, which takes a second each time.

What differs between two agents (folder, environment, pipes) goes to the fork. An agent whose start itself is looked at
is started as a program (`AgentProcess` without a nursery).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

PROGRAM = Path(__file__).parent / "agent_program.py"
LONGEST_REQUEST_BYTES = 65_536


class ForkedProcess:
    """A fork of the nursery's, as `subprocess.Popen` shows its own."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        """Hold a process and its pipes."""
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._pidfd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        """Send a signal; one that has ended gets none."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def communicate(self, text: str = "", timeout: float | None = None) -> None:
        """Say a last thing, and wait for the end.

        Raises:
            TimeoutExpired: it has not ended in time.
        """
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(text)
            self.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(PROGRAM), timeout or 0.0)
        self.stdout.close()
        os.close(self._pidfd)


class AgentNursery:
    """Forks agents."""

    def __init__(self, library_folder: Path) -> None:
        """Start the process that forks them, whose NVML is the simulated one of a folder."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM), "--nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "LD_LIBRARY_PATH": str(library_folder)},
            )

    def start(self, folder: Path, rate: float, environment: dict[str, str]) -> ForkedProcess:
        """Start an agent."""
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        changed = {key: value for key, value in environment.items() if os.environ.get(key) != value}
        request = json.dumps({"folder": str(folder), "rate": rate, "environment": changed}).encode()
        socket.send_fds(self._socket, [request], [their_stdin, their_stdout])
        os.close(their_stdin)
        os.close(their_stdout)
        pid = int(self._socket.recv(64))
        return ForkedProcess(pid, os.fdopen(stdin, "w"), os.fdopen(stdout))

    def close(self) -> None:
        """Start no more."""
        self._socket.close()
        self._process.wait()
