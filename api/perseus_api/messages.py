"""The messages between a training process and its node's agent, over a Unix ``SOCK_SEQPACKET`` socket.

One packet is one message; the connection is the lease. The trainer sends a `Hello` first, then only `Boundary` messages
of one fixed size, and never waits for an answer; the agent answers the hello with one `Welcome` that a trainer
may read or ignore. Times are ``time.monotonic_ns()`` of the node, which trainer and agent share.

A boundary kind that an agent does not know ends the lease: the clock is given back, and the trainer connects again. So
an older agent, to which `BoundaryKind.ITERATION_BROKEN` is unknown, does what is safe, and the version need not change.

Nothing here opens a socket. Standard library only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from perseus_api.instructions import Instruction

PROTOCOL_VERSION = 1

_HELLO = struct.Struct("<4sHHIIII64s64s64s")  # magic, version, reserved, pipeline, stage, tensor rank, pid, three texts
_HELLO_MAGIC = b"PRSH"
BOUNDARY_FORMAT = "<BBHIQQ"  # kind, instruction code, chunk, microbatch, iteration, monotonic nanoseconds
_BOUNDARY = struct.Struct(BOUNDARY_FORMAT)
_WELCOME = struct.Struct("<4sHH120s")  # magic, version, verdict, reason
_WELCOME_MAGIC = b"PRSW"

HELLO_BYTES = _HELLO.size
BOUNDARY_BYTES = _BOUNDARY.size
WELCOME_BYTES = _WELCOME.size
MAXIMUM_MESSAGE_BYTES = max(HELLO_BYTES, BOUNDARY_BYTES, WELCOME_BYTES)


class MessageError(ValueError):
    """A packet that is not a message of this protocol; the text says what is wrong with it."""


class BoundaryKind(IntEnum):
    """What happens at a boundary. ITERATION_BROKEN is an end too: by an exception, with the work not done."""

    ITERATION_BEGIN = 1
    INSTRUCTION_BEGIN = 2
    INSTRUCTION_END = 3
    ITERATION_END = 4
    ITERATION_BROKEN = 5


class ChunkPlacement(IntEnum):
    """How a rank's model chunks lie in the model, as a training script knows it and tells at an iteration's begin.

    Chunk c of rank r of R holds part c x R + r (LOOP); in V shape every other chunk runs through the ranks backwards.
    """

    UNKNOWN = 0
    LOOP = 1
    V = 2


class Verdict(IntEnum):
    """The agent's answer to a hello."""

    SERVED = 0
    REFUSED = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a training process says it is. The agent checks each claim against the kernel, the API and the kubelet.

    Attributes:
        namespace: namespace of the PerseusJob, at most 63 bytes.
        job: name of the PerseusJob, at most 63 bytes.
        gpu_uuid: UUID of the GPU of this rank; empty if the process does not know it and its pod owns only one.
        pipeline: data-parallel index, from 0.
        stage: pipeline stage, from 0.
        tensor_rank: tensor-parallel rank within the stage, from 0.
        pid: the process id as the trainer sees it (informative; the agent uses the kernel's).
    """

    namespace: str
    job: str
    gpu_uuid: str
    pipeline: int
    stage: int
    tensor_rank: int
    pid: int

    def pack(self) -> bytes:
        """Return the packet.

        Raises:
            MessageError: a text is longer than 63 bytes or not UTF-8, or a number does not fit.
        """
        try:
            texts = [text.encode() for text in (self.namespace, self.job, self.gpu_uuid)]
        except UnicodeEncodeError:
            raise MessageError("namespace, job and GPU UUID of a hello must be UTF-8") from None
        if any(len(text) > 63 for text in texts):
            raise MessageError("namespace, job and GPU UUID of a hello may have at most 63 bytes each")
        try:
            return _HELLO.pack(
                _HELLO_MAGIC, PROTOCOL_VERSION, 0, self.pipeline, self.stage, self.tensor_rank, self.pid, *texts
            )
        except struct.error as error:
            raise MessageError(f"a hello's numbers must fit 32 bits: {error}") from None

    @classmethod
    def unpack(cls, packet: bytes) -> Hello:
        """Parse a packet.

        Raises:
            MessageError: wrong size, magic or version, or a text that is not UTF-8.
        """
        if len(packet) != HELLO_BYTES:
            raise MessageError(f"a hello has {HELLO_BYTES} bytes, this packet has {len(packet)}")
        magic, version, _, pipeline, stage, tensor_rank, pid, *texts = _HELLO.unpack(packet)
        if magic != _HELLO_MAGIC:
            raise MessageError("the first packet of a connection must be a hello")
        if version != PROTOCOL_VERSION:
            raise MessageError(f"protocol version {version} is not {PROTOCOL_VERSION}: update the trainer library")
        try:
            namespace, job, gpu_uuid = (text.rstrip(b"\0").decode() for text in texts)
        except UnicodeDecodeError:
            raise MessageError("namespace, job and GPU UUID of a hello must be UTF-8") from None
        return cls(namespace, job, gpu_uuid, pipeline, stage, tensor_rank, pid)


class Boundary(NamedTuple):
    """One boundary of the training loop. A tuple, since the agent makes one for each message that hurries.

    Attributes:
        kind: what begins or ends.
        iteration: index of the training iteration.
        time_nanoseconds: ``time.monotonic_ns()`` when it happened.
        instruction: the instruction, None at iteration boundaries.
        microbatch: index of the microbatch, 0 at iteration boundaries.
        chunk: model chunk of interleaved schedules, 0 elsewhere; at an iteration's begin a `ChunkPlacement`.
    """

    kind: BoundaryKind
    iteration: int
    time_nanoseconds: int
    instruction: Instruction | None = None
    microbatch: int = 0
    chunk: int = 0

    def pack(self) -> bytes:
        """Return the packet of `BOUNDARY_BYTES` bytes.

        Raises:
            MessageError: a number does not fit its field.
        """
        return pack_boundary(
            self.kind,
            self.iteration,
            self.time_nanoseconds,
            0 if self.instruction is None else ord(self.instruction.code),
            self.microbatch,
            self.chunk,
        )

    @classmethod
    def unpack(cls, packet: bytes) -> Boundary:
        """Parse a packet.

        Raises:
            MessageError: wrong size, unknown kind or unknown instruction.
        """
        if len(packet) != BOUNDARY_BYTES:
            raise MessageError(f"a boundary has {BOUNDARY_BYTES} bytes, this packet has {len(packet)}")
        kind, code, chunk, microbatch, iteration, time_nanoseconds = _BOUNDARY.unpack(packet)
        meaning = _MEANINGS.get((kind, code))
        if meaning is None:
            raise MessageError(
                f"unknown boundary kind {kind} or instruction code {code}; instruction boundaries name an instruction, "
                "iteration boundaries do not"
            )
        # Not by the named tuple's own constructor, a function in Python: the agent does this for each message.
        return tuple.__new__(cls, (meaning[0], iteration, time_nanoseconds, meaning[1], microbatch, chunk))


# What a boundary's first two bytes may say; everything else is refused.
_MEANINGS: dict[tuple[int, int], tuple[BoundaryKind, Instruction | None]] = {
    **{
        (int(kind), 0): (kind, None)
        for kind in (BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END, BoundaryKind.ITERATION_BROKEN)
    },
    **{
        (int(kind), ord(instruction.code)): (kind, instruction)
        for kind in (BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END)
        for instruction in Instruction
    },
}


def pack_boundary(
    kind: int, iteration: int, time_nanoseconds: int, instruction_code: int = 0, microbatch: int = 0, chunk: int = 0
) -> bytes:
    """Pack a boundary from plain numbers.

    Raises:
        MessageError: a number does not fit its field.
    """
    try:
        return _BOUNDARY.pack(kind, instruction_code, chunk, microbatch, iteration, time_nanoseconds)
    except struct.error as error:
        raise MessageError(f"a boundary's number does not fit its field: {error}") from None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The agent's answer to a hello: served, or refused with a reason of at most 120 bytes."""

    verdict: Verdict
    reason: str = ""

    def pack(self) -> bytes:
        """Return the packet; a longer reason is cut at 120 bytes."""
        reason = self.reason.encode()[:120].decode(errors="ignore").encode()
        return _WELCOME.pack(_WELCOME_MAGIC, PROTOCOL_VERSION, self.verdict, reason)

    @classmethod
    def unpack(cls, packet: bytes) -> Welcome:
        """Parse a packet.

        Raises:
            MessageError: it is not a welcome of this version.
        """
        if len(packet) != WELCOME_BYTES:
            raise MessageError(f"a welcome has {WELCOME_BYTES} bytes, this packet has {len(packet)}")
        magic, version, verdict, reason = _WELCOME.unpack(packet)
        if magic != _WELCOME_MAGIC or version != PROTOCOL_VERSION:
            raise MessageError("not a welcome of this protocol version")
        try:
            return cls(Verdict(verdict), reason.rstrip(b"\0").decode())
        except (ValueError, UnicodeDecodeError):
            raise MessageError(f"unknown verdict {verdict} or a reason that is not UTF-8") from None
