"""zeusd (Zeus's daemon, crates.io) over the simulated library: built once into a cache, asked over its Unix socket.

It is asked in the way that suits it best: a bare socket whose connection stays open, ``block=false``, answers that are
read when there is time. As it ships it logs each request; told to be silent it is faster.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment

from tests.agent.agent_process import eventually

VERSION = "0.5.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "perseus-operator"


def program() -> Path:
    """Return zeusd's program, building it the first time (about four minutes).

    Raises:
        CalledProcessError: cargo could not build it.
        FileNotFoundError: there is no cargo.
    """
    root = CACHE / f"zeusd-{VERSION}"
    built = root / "bin" / "zeusd"
    if not built.exists():
        command = ["cargo", "install", "zeusd", "--version", VERSION, "--locked", "--root", str(root)]
        subprocess.run([*command, "--target-dir", str(CACHE / "zeusd-build")], check=True)
    return built


class Zeusd:
    """The daemon, and one open connection for each GPU."""

    def __init__(self, folder: Path, node: SimulatedNode, indices: list[int], *, silent: bool) -> None:
        """Start it, and connect."""
        path = folder / f"zeusd-{'silent' if silent else 'shipped'}.sock"
        command = [str(program()), "serve", "--socket-path", str(path), "--enable", "gpu-control,gpu-read"]
        environment = {**simulator_environment(node), "RUST_LOG": "off" if silent else "info"}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        eventually(path.exists, "zeusd serves", 30)
        self._path = path
        self._connections = {index: _connect(path) for index in indices}

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def reconnect(self) -> None:
        """Open the connections anew: the daemon closes those that say nothing for five seconds."""
        for index, connection in self._connections.items():
            connection.close()
            self._connections[index] = _connect(self._path)

    def request(self, index: int, megahertz: int) -> bytes:
        """Return the bytes that ask for a clock."""
        query = f"gpu_ids={index}&block=false&min_clock_mhz={megahertz}&max_clock_mhz={megahertz}"
        return (
            f"POST /gpu/set_gpu_locked_clocks?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def send(self, index: int, megahertz: int) -> None:
        """Ask for a clock."""
        self._connections[index].sendall(self.request(index, megahertz))

    def read_answers(self, index: int) -> None:
        """Read what has come; raises if a request was refused."""
        with contextlib.suppress(BlockingIOError):
            while answer := self._connections[index].recv(65_536):
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"zeusd refused: {answer[:200]!r}")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        for connection in self._connections.values():
            connection.close()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    connection.setblocking(False)
    return connection
