"""A training process's side of its lease: what the hooks tell, where the boundary is, what is recorded.

Nothing here waits for the agent or raises because of it. Hooks that a script calls where they make no sense are said
once in its log; the agent sees that the plan is not followed, and unlocks the GPU.
"""

from __future__ import annotations

import itertools
import logging
import os
import struct
import threading
from collections.abc import Callable
from time import monotonic_ns

from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.messages import BOUNDARY_FORMAT, ChunkPlacement, Hello, MessageError, pack_boundary

from perseus_trainer.connection import Connection
from perseus_trainer.edges import Edge
from perseus_trainer.environment import EnvironmentProblem, Rank
from perseus_trainer.hooks import (
    INSTRUCTION_END,
    ITERATION_BEGIN,
    ITERATION_BROKEN,
    ITERATION_END,
    NOTHING,
    CountingHook,
    Hook,
    InstructionHook,
    IterationHook,
)
from perseus_trainer.recording import RecordedOrder, Recorder

logger = logging.getLogger("perseus.trainer")
_CODES = {each.value: ord(each.code) for each in Instruction}
_pack = struct.Struct(BOUNDARY_FORMAT).pack
_NONE = (0, 0, 0)
_PLACEMENTS = {None: int(ChunkPlacement.UNKNOWN), False: int(ChunkPlacement.LOOP), True: int(ChunkPlacement.V)}


class Session:
    """A training process's connection to its agent, or the absence of one.

    Attributes:
        iteration_index: index of the iteration that runs now or ran last; -1 before the first.
        in_iteration: whether one runs now.
        edge: where boundaries are; None is where Python is.
        counters: of each instruction and chunk in this iteration; see `count`.
        v_shape: whether every other model chunk runs through the ranks backwards; None: nobody said.
    """

    def __init__(
        self,
        connection: Connection | None,
        record: bool = False,
        edge: Edge | None = None,
        v_shape: bool | None = None,
    ) -> None:
        """Use `connect`."""
        self._connection = connection
        self._recorder = Recorder() if record or connection is not None else None
        self._record: Callable[[tuple[int, int, int]], None] = lambda _: None
        self.active = self._recorder is not None
        self.edge = edge
        self.v_shape = v_shape
        self.iteration_index = -1
        self.in_iteration = False
        self.counters: dict[tuple[int, int], itertools.count[int]] = {}
        self._running: tuple[int, int, int] | None = None
        self._said: set[str] = set()

    @property
    def connected(self) -> bool:
        """Whether an agent serves this process now."""
        return self._connection is not None and self._connection.connected

    def iteration(self, index: int | None = None) -> Hook:
        """Surround one training iteration, or decorate the function that is one.

        Args:
            index: of the iteration; by default one more than the last, from 0. Decorated functions always count.
        """
        if not self.active:
            return NOTHING
        return IterationHook(self, index)

    def instruction(self, instruction: str | Instruction, *, microbatch: int | None = None, chunk: int = 0) -> Hook:
        """Surround one instruction of the pipeline, or decorate the function that is one.

        Args:
            instruction: such as ``forward`` or ``backward`` (see `perseus_api.instructions.Instruction`).
            microbatch: index of its microbatch; by default they are counted in each iteration, from 0.
            chunk: model chunk, in interleaved schedules.

        Raises:
            ValueError: the instruction is unknown.
        """
        code = _CODES.get(instruction)
        if code is None:
            raise ValueError(f"instruction {instruction!r} is unknown; use one of {', '.join(_CODES)}")
        if not self.active:
            return NOTHING
        if microbatch is None:
            return CountingHook(self, code, chunk)
        return InstructionHook(self, (code, microbatch, chunk))

    def recorded_order(self) -> RecordedOrder:
        """Return the instructions of the last whole iteration, in the order in which they began."""
        return self._recorder.order() if self._recorder is not None else ()

    def close(self) -> None:
        """Give the GPU's lease up; the agent unlocks its clock."""
        if self._connection is not None:
            self._connection.close()

    def begin_iteration(self, index: int | None = None) -> None:
        """Tell that an iteration begins; hooks and adapters call it."""
        if self.in_iteration:
            self._complain("an iteration began inside of another: surround each training step once")
        self.iteration_index = self.iteration_index + 1 if index is None else index
        self.counters = {}
        self._running = None
        self.in_iteration = True
        if self._recorder is not None:
            self._record = self._recorder.begin_iteration()
        if self._connection is not None and self._connection.is_inherited:
            self._connection.begin_anew()
        self._reach(ITERATION_BEGIN, (0, 0, _PLACEMENTS[self.v_shape]))

    def end_iteration(self) -> None:
        """Tell that the iteration ends; hooks and adapters call it."""
        self._reach(ITERATION_END, _NONE)
        self.in_iteration = False
        if self._recorder is not None:
            self._recorder.end_iteration()

    def break_iteration(self) -> None:
        """Tell that an exception left the iteration; hooks and adapters call it. Its order is not recorded."""
        self._reach(ITERATION_BROKEN, _NONE)
        self.in_iteration = False

    def break_instruction(self) -> None:
        """An exception left the instruction that runs: its end is not told, since it did not come to it."""
        self._running = None

    def mark(self, kind: int, arguments: tuple[int, int, int]) -> None:
        """Tell of one instruction's boundary; never waits for the agent, never raises."""
        # Between two kernels all of this is cold in the processor's caches: each call in Python less is a microsecond.
        if not self.in_iteration:
            if self.active:
                self._complain("an instruction ran outside of an iteration: surround the training step by iteration()")
            return
        if kind == INSTRUCTION_END:
            self._running = None
        else:
            if self._running is not None:
                self._complain("an instruction began before another had ended: their clocks cannot be told apart")
            self._running = arguments
            self._record(arguments)
        connection = self._connection
        if connection is None or self.edge is not None:
            self._reach(kind, arguments)
            return
        code, microbatch, chunk = arguments
        try:
            packet = _pack(kind, code, chunk, microbatch, self.iteration_index, monotonic_ns())
        except struct.error:
            self._reach(kind, arguments)  # It says what does not fit.
            return
        agent = connection.socket
        if agent is None:
            connection.dropped += 1
            return
        try:
            agent.send(packet)
        except OSError as error:
            connection.failed(agent, error)

    def count(self, code: int, chunk: int) -> int:
        """Return how many of an instruction there were in this iteration, and count one more."""
        counter = self.counters.get((code, chunk))
        if counter is None:
            counter = self.counters.setdefault((code, chunk), itertools.count())
        return next(counter)

    def _reach(self, kind: int, arguments: tuple[int, int, int]) -> None:
        connection, edge, iteration = self._connection, self.edge, self.iteration_index
        if connection is None:
            return
        if edge is not None:
            edge.reach(lambda: self._tell(connection, kind, iteration, arguments))
        else:
            self._tell(connection, kind, iteration, arguments)

    def _tell(self, connection: Connection, kind: int, iteration: int, arguments: tuple[int, int, int]) -> None:
        try:
            connection.send(pack_boundary(kind, iteration, monotonic_ns(), *arguments))
        except MessageError as error:
            self._complain(str(error))

    def _complain(self, text: str) -> None:
        """Say what a script does wrong, once for each mistake: training goes on, and so does the log."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s; the agent unlocks the GPU where its plan is not followed", text)


def connect(
    rank: Rank | None = None,
    socket_path: str | None = None,
    *,
    record: bool = False,
    edge: Edge | None = None,
    v_shape: bool | None = None,
) -> Session:
    """Return a session with the node's agent.

    Without an agent's socket (``PERSEUS_SOCKET``) or with variables that make no sense, the session does nothing and a
    warning says so: a training script runs the same with and without Perseus.

    Args:
        rank: who this process is; by default read from the environment.
        socket_path: the agent's socket; by default ``PERSEUS_SOCKET``.
        record: keep the order that runs, without an agent too (with one it is always kept).
        edge: where boundaries are; by default where Python is, which is right without an accelerator.
        v_shape: where ranks hold several model chunks and the job's schedule is Recorded: whether every other chunk
            runs through the ranks backwards. Adapters say it themselves.
    """
    path = socket_path or os.environ.get(names.ENV_SOCKET, "")
    if not path:
        return Session(None, record, edge, v_shape)
    try:
        who = rank or Rank.from_environment()
        hello = Hello(who.namespace, who.job, who.gpu_uuid, who.pipeline, who.stage, who.tensor_rank, os.getpid())
        return Session(Connection(path, hello), record, edge, v_shape)
    except (EnvironmentProblem, MessageError) as error:
        logger.warning("%s; training goes on without Perseus", error)
        return Session(None, record, edge, v_shape)


_mutex = threading.Lock()
_default: Session | None = None


def default_session() -> Session:
    """Return this process's session, connected by the environment at the first call."""
    global _default
    if _default is None:
        with _mutex:
            if _default is None:
                _default = connect()
    return _default


def iteration(index: int | None = None) -> Hook:
    """Surround one training iteration in this process's session; see `Session.iteration`."""
    return default_session().iteration(index)


def instruction(name: str | Instruction, *, microbatch: int | None = None, chunk: int = 0) -> Hook:
    """Surround one instruction in this process's session; see `Session.instruction`."""
    return default_session().instruction(name, microbatch=microbatch, chunk=chunk)
