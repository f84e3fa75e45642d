"""The agent's side of the socket, real: in this process to look at, in one of its own to stop and to kill."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Boundary, Hello, Verdict, Welcome

DEADLINE_SECONDS = 60.0
AgentStarter = Callable[[], "subprocess.Popen[str]"]

AGENT_PROGRAM = """
import selectors, socket, sys
from perseus_api.messages import Verdict, Welcome
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
held = []
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            connection, _ = listener.accept()
            connection.recv(512)
            connection.send(Welcome(Verdict.SERVED).pack())
            selector.register(connection, selectors.EVENT_READ)
        elif not key.fileobj.recv(512):
            selector.unregister(key.fileobj)
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; fail, naming it, if it never does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


class AgentSide:
    """A listening socket whose other end's packets a test reads itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(DEADLINE_SECONDS)
        self._accepted: list[socket.socket] = []

    def patience(self, seconds: float) -> None:
        """Wait this long for the next connection."""
        self._listener.settimeout(seconds)

    def accept(self) -> tuple[socket.socket, Hello]:
        """Take the next connection and its hello; the welcome is left to the test."""
        connection, _ = self._listener.accept()
        connection.settimeout(DEADLINE_SECONDS)
        self._accepted.append(connection)
        return connection, Hello.unpack(connection.recv(MAXIMUM_MESSAGE_BYTES))

    def serve(self) -> socket.socket:
        """Take the next connection and welcome it."""
        connection, _ = self.accept()
        connection.send(Welcome(Verdict.SERVED).pack())
        return connection

    def close_listener(self) -> None:
        """In a child: leave listening to the parent."""
        self._listener.close()

    def close(self) -> None:
        """Go away as a dying agent does, the socket's file included."""
        for connection in [*self._accepted, self._listener]:
            connection.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def read(connection: socket.socket) -> Boundary | None:
    """The next boundary, None when the connection has ended."""
    packet = connection.recv(MAXIMUM_MESSAGE_BYTES)
    return Boundary.unpack(packet) if packet else None
