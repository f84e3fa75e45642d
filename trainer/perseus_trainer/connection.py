"""The connection to the node's agent: the lease under which the agent sets this GPU's clock.

Sending never blocks and never raises: a full buffer drops the message (the agent then sees a mismatch and unlocks), a
lost agent is looked for again by a thread in the background. The thread only ever waits; it costs training nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from dataclasses import replace

from perseus_api.messages import WELCOME_BYTES, Hello, MessageError, Verdict, Welcome

RETRY_SECONDS = 0.5
RETRY_AFTER_REFUSAL_SECONDS = 5.0
WELCOME_TIMEOUT_SECONDS = 5.0
logger = logging.getLogger("perseus.trainer")


class Connection:
    """Connects in the background, again and again, and sends when connected.

    Attributes:
        dropped: messages that found no agent, or a full buffer.
        socket: to the agent, which never blocks; None while nobody serves.
        is_inherited: whether this process is a fork of the one that looked for the agent.
    """

    def __init__(self, path: str, hello: Hello) -> None:
        """Begin to look for the agent behind a Unix socket.

        Args:
            path: the agent's SOCK_SEQPACKET socket.
            hello: who this process is.

        Raises:
            MessageError: the hello cannot be packed.
        """
        self._path = path
        hello.pack()  # what cannot be packed is said here, not in the thread that sends it
        self._hello = hello
        self.socket: socket.socket | None = None
        self._candidate: socket.socket | None = None
        self.dropped = 0
        self._start()
        # A child must not keep the lease of its parent alive, nor share it.
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(reference))

    @property
    def connected(self) -> bool:
        """Whether an agent serves this process now."""
        return self.socket is not None

    def send(self, packet: bytes) -> None:
        """Send a packet if that is possible at once."""
        current = self.socket
        if current is None:
            self.dropped += 1
            return
        try:
            current.send(packet)
        except OSError as error:
            self.failed(current, error)

    def failed(self, current: socket.socket, error: OSError) -> None:
        """A packet could not be sent over this socket: the buffer is full, or the agent is gone."""
        self.dropped += 1
        if not isinstance(error, BlockingIOError):
            self._lose(current)

    def close(self) -> None:
        """Give the lease up."""
        self._closed = True
        self.is_inherited = False
        current, self.socket = self.socket, None
        if current is not None:
            current.close()
        self._wanted.set()

    def after_fork(self) -> None:
        """In a child process: close the parent's lease here, and send nothing unless the child begins to train."""
        self.is_inherited = self.is_inherited or not self._closed
        self._closed = True
        current, self.socket = self.socket, None
        # The thread that waits for a welcome is not in the child, but the socket that it waits on is.
        candidate, self._candidate = self._candidate, None
        for inherited in (current, candidate):
            if inherited is not None:
                inherited.close()

    def begin_anew(self) -> None:
        """In a child process that trains: look for the agent as a process of its own.

        While the parent lives the agent refuses it as the rank's second process, and the job's condition says so.
        """
        self._hello = replace(self._hello, pid=os.getpid())
        self._start()

    def _start(self) -> None:
        self.is_inherited = self._closed = False
        # In a child too it is a new one: whoever held the lock of the parent's is not there.
        self._wanted = threading.Event()
        self._wanted.set()
        try:
            threading.Thread(target=self._keep_connected, name="perseus-connection", daemon=True).start()
        except RuntimeError as error:  # No more threads may be started.
            logger.warning("nobody looks for the agent (%s): training goes on unlocked", error)

    def _lose(self, current: socket.socket) -> None:
        if self.socket is current:
            self.socket = None
            current.close()
            self._wanted.set()

    def _keep_connected(self) -> None:
        told = ""
        waiting = threading.Event()
        while True:
            self._wanted.wait()
            if self._closed:
                return
            problem, pause_seconds = self._try_once()
            if problem != told:
                told = problem
                logger.log(logging.WARNING if problem else logging.INFO, problem or "connected to the node's agent")
            if problem:
                waiting.wait(pause_seconds)

    def _try_once(self) -> tuple[str, float]:
        """Connect; return what went wrong ("" if nothing did) and how long to wait before the next try."""
        try:
            candidate = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        except OSError as error:  # The script has as many files open as it may: that passes.
            return f"no socket to the agent ({error}): training goes on unlocked", RETRY_SECONDS
        self._candidate = candidate
        try:
            candidate.settimeout(WELCOME_TIMEOUT_SECONDS)
            candidate.connect(self._path)
            candidate.send(self._hello.pack())
            welcome = Welcome.unpack(candidate.recv(WELCOME_BYTES))
            # With a timeout Python waits for room in the buffer before it sends, whatever MSG_DONTWAIT says.
            candidate.setblocking(False)
        except (OSError, MessageError) as error:
            candidate.close()
            return f"no agent at {self._path} ({error}): training goes on unlocked", RETRY_SECONDS
        if welcome.verdict is not Verdict.SERVED:
            candidate.close()
            return f"the agent refused: {welcome.reason}; training goes on unlocked", RETRY_AFTER_REFUSAL_SECONDS
        self._wanted.clear()
        self.socket = candidate
        self._candidate = None
        if self._closed:
            self.close()
        return "", 0.0


def _forget(reference: weakref.ref[Connection]) -> None:
    connection = reference()
    if connection is not None:
        connection.after_fork()
