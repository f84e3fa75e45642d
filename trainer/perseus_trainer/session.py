"""The hooks: what a training script calls at the boundaries of iterations and instructions.

The hot path is two system calls an instruction and no allocation beyond the packet; without an agent's socket in the
environment every hook is one shared object that does nothing.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext

from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.messages import BoundaryKind, Hello, MessageError, pack_boundary

from perseus_trainer.connection import Connection
from perseus_trainer.environment import EnvironmentProblem, Rank

logger = logging.getLogger("perseus.trainer")
_NOTHING: AbstractContextManager[None] = nullcontext()
_ITERATION_BEGIN, _ITERATION_END = int(BoundaryKind.ITERATION_BEGIN), int(BoundaryKind.ITERATION_END)
_INSTRUCTION_BEGIN, _INSTRUCTION_END = int(BoundaryKind.INSTRUCTION_BEGIN), int(BoundaryKind.INSTRUCTION_END)
# By name as well as by member, which is a string: making a member of a name would cost more than all the rest.
_CODES: dict[str, int] = {instruction: ord(instruction.code) for instruction in Instruction}


class _Span:
    """Sends one boundary when entered and one when left."""

    __slots__ = ("_arguments", "_begin", "_end", "_session")

    def __init__(self, session: Session, begin: int, end: int, arguments: tuple[int, int, int]) -> None:
        self._session = session
        self._begin = begin
        self._end = end
        self._arguments = arguments

    def __enter__(self) -> None:
        self._session.send(self._begin, self._arguments)

    def __exit__(self, *_: object) -> None:
        self._session.send(self._end, self._arguments)


class Session:
    """A training process's connection to its agent, or the absence of one.

    Attributes:
        iteration_index: index of the iteration that runs now; -1 before the first.
    """

    def __init__(self, connection: Connection | None) -> None:
        """Use `connect`."""
        self._connection = connection
        self.iteration_index = -1

    @property
    def connected(self) -> bool:
        """Whether an agent serves this process now."""
        return self._connection is not None and self._connection.connected

    def iteration(self, index: int | None = None) -> AbstractContextManager[None]:
        """Surround one training iteration.

        Args:
            index: of the iteration; by default one more than the last, from 0.
        """
        self.iteration_index = self.iteration_index + 1 if index is None else index
        if self._connection is None:
            return _NOTHING
        return _Span(self, _ITERATION_BEGIN, _ITERATION_END, (0, 0, 0))

    def instruction(
        self, instruction: str | Instruction, *, microbatch: int = 0, chunk: int = 0
    ) -> AbstractContextManager[None]:
        """Surround one instruction of the pipeline.

        Args:
            instruction: such as ``forward`` or ``backward`` (see `perseus_api.instructions.Instruction`).
            microbatch: index of its microbatch.
            chunk: model chunk, in interleaved schedules.

        Raises:
            ValueError: the instruction is unknown.
        """
        code = _CODES.get(instruction) or ord(Instruction(instruction).code)
        if self._connection is None:
            return _NOTHING
        return _Span(self, _INSTRUCTION_BEGIN, _INSTRUCTION_END, (code, microbatch, chunk))

    def close(self) -> None:
        """Give the GPU's lease up; the agent unlocks its clock."""
        if self._connection is not None:
            self._connection.close()

    def send(self, kind: int, arguments: tuple[int, int, int]) -> None:
        """Tell the agent of one boundary, now; never blocks, never raises."""
        if self._connection is None or self.iteration_index < 0:
            return  # Outside of iterations there is nothing to follow.
        try:
            packet = pack_boundary(kind, self.iteration_index, time.monotonic_ns(), *arguments)
        except MessageError as error:
            logger.warning("%s", error)
            return
        self._connection.send(packet)


def connect(rank: Rank | None = None, socket_path: str | None = None) -> Session:
    """Return a session with the node's agent.

    Without an agent's socket (``PERSEUS_SOCKET``) or with variables that make no sense, the session does nothing and a
    warning says so: a training script runs the same with and without Perseus.

    Args:
        rank: who this process is; by default read from the environment.
        socket_path: the agent's socket; by default ``PERSEUS_SOCKET``.
    """
    path = socket_path or os.environ.get(names.ENV_SOCKET, "")
    if not path:
        return Session(None)
    try:
        who = rank or Rank.from_environment()
        hello = Hello(who.namespace, who.job, who.gpu_uuid, who.pipeline, who.stage, who.tensor_rank, os.getpid())
        return Session(Connection(path, hello))
    except (EnvironmentProblem, MessageError) as error:
        logger.warning("%s; training goes on without Perseus", error)
        return Session(None)
