"""The connections between ranks: neighbours in a pipeline, and the replicas of a stage. Real TCP, one message a packet.

A rank listens while it meets its peers and stops once training begins, so that a rank of a later attempt can never
join an earlier one. Whoever loses a peer says so at once; nobody waits for the dead.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field

from perseus_simulator.workload.placement import Placement

_HELLO = struct.Struct("<4sI")  # magic, rank of the sender
_MAGIC = b"PRSL"
_MESSAGE = struct.Struct("<I")
_READY = 0xFFFF_FFFF
_RETRY_SECONDS = 0.2
_ACCEPT_SECONDS = 0.05
_HELLO_TIMEOUT_SECONDS = 2.0


class PeerLost(Exception):
    """A peer's connection ended; the text names the rank."""


@dataclass
class Links:
    """The open connections of one rank, by the peer's rank; and what came from it before it was asked for."""

    placement: Placement
    peers: dict[int, socket.socket] = field(default_factory=dict)
    early: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def meet(cls, placement: Placement, timeout_seconds: float) -> Links:
        """Connect to all peers, and return once every rank of the job has done so.

        Raises:
            PeerLost: not all were there in time.
        """
        links = cls(placement)
        deadline = time.monotonic() + timeout_seconds
        address = placement.addresses[placement.rank]
        with contextlib.closing(_listen(address[1])) as listener:
            while True:
                links._gather(listener, deadline)
                try:
                    links._barrier(deadline)
                    return links
                except (PeerLost, TimeoutError):
                    # A peer restarted while we met: meet again.
                    links.close()
                    if time.monotonic() > deadline:
                        raise PeerLost(f"rank {placement.rank}: the ranks did not all meet") from None

    def send(self, peer: int, value: int) -> None:
        """Send a number to a peer.

        Raises:
            PeerLost: it is gone.
        """
        try:
            self.peers[peer].sendall(_MESSAGE.pack(value))
        except OSError as error:
            raise PeerLost(f"rank {peer} is gone: {error}") from None

    def receive(self, peer: int) -> int:
        """Wait for a number from a peer.

        Raises:
            PeerLost: it is gone.
        """
        data = b""
        while len(data) < _MESSAGE.size:
            try:
                part = self.peers[peer].recv(_MESSAGE.size - len(data))
            except TimeoutError:
                raise
            except OSError as error:
                raise PeerLost(f"rank {peer} is gone: {error}") from None
            if not part:
                raise PeerLost(f"rank {peer} is gone")
            data += part
        number: int = _MESSAGE.unpack(data)[0]
        return number

    def expect(self, peer: int, value: int) -> None:
        """Wait for one number from a peer, which may send others before: of other chunks, or the other way round.

        Raises:
            PeerLost: it is gone.
        """
        early = self.early.setdefault(peer, set())
        while value not in early:
            early.add(self.receive(peer))
        early.remove(value)

    def synchronise(self, iteration: int) -> None:
        """Wait until all replicas of the stage are here, as a gradient synchronisation does.

        Raises:
            PeerLost: one is gone.
        """
        first, *others = self.placement.replicas
        if self.placement.rank == first:
            for peer in others:
                self.receive(peer)
            for peer in others:
                self.send(peer, iteration)
        else:
            self.send(first, iteration)
            self.receive(first)

    def close(self) -> None:
        """Close all connections."""
        for connection in self.peers.values():
            connection.close()
        self.peers.clear()

    def _expected(self) -> tuple[list[int], list[int]]:
        """Ranks that we connect to, and ranks that connect to us."""
        place = self.placement
        first, *others = place.replicas
        outward = [peer for peer in place.neighbours if peer < place.rank]
        inward = [peer for peer in place.neighbours if peer > place.rank]
        if place.rank == first:
            inward += others
        else:
            outward.append(first)
        return outward, inward

    def _gather(self, listener: socket.socket, deadline: float) -> None:
        outward, inward = self._expected()
        retry_at = 0.0
        while any(peer not in self.peers for peer in outward + inward):
            now = time.monotonic()
            if now > deadline:
                missing = [peer for peer in outward + inward if peer not in self.peers]
                raise PeerLost(f"rank {self.placement.rank}: ranks {missing} did not come")
            if now >= retry_at:
                retry_at = now + _RETRY_SECONDS
                for peer in outward:
                    if peer not in self.peers:
                        self._connect(peer)
            self._accept(listener, inward)

    def _connect(self, peer: int) -> None:
        with contextlib.suppress(OSError):  # Not there yet, or its name is not.
            connection = socket.create_connection(self.placement.addresses[peer], timeout=_HELLO_TIMEOUT_SECONDS)
            connection.sendall(_HELLO.pack(_MAGIC, self.placement.rank))
            self._keep(peer, connection)

    def _accept(self, listener: socket.socket, inward: list[int]) -> None:
        listener.settimeout(_ACCEPT_SECONDS)
        with contextlib.suppress(OSError, struct.error):
            connection, _ = listener.accept()
            connection.settimeout(_HELLO_TIMEOUT_SECONDS)
            magic, peer = _HELLO.unpack(connection.recv(_HELLO.size, socket.MSG_WAITALL))
            if magic == _MAGIC and peer in inward:
                self._keep(peer, connection)  # A newer connection replaces one of an earlier attempt.
            else:
                connection.close()

    def _keep(self, peer: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        earlier = self.peers.pop(peer, None)
        if earlier is not None:
            earlier.close()
        self.peers[peer] = connection

    def _barrier(self, deadline: float) -> None:
        """All ranks are ready: told up each pipeline, across the first stages, and down again."""
        place = self.placement
        for connection in self.peers.values():
            connection.settimeout(max(0.1, deadline - time.monotonic()))
        if place.next is not None:
            self.receive(place.next)
        if place.previous is not None:
            self.send(place.previous, _READY)
            self.receive(place.previous)
        else:
            self.synchronise(_READY)
        if place.next is not None:
            self.send(place.next, _READY)
        for connection in self.peers.values():
            connection.settimeout(None)


def _listen(port: int) -> socket.socket:
    listener = socket.create_server(("", port), reuse_port=False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener
