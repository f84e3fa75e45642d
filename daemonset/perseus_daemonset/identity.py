"""Who is at the other end of a socket: kernel credentials -> control group -> pod UID, never what the peer says.

A process id may be given to another process between two looks at it; a pidfd tells whether that has happened.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERPIDFD = 77  # linux/socket.h, since Linux 6.5; Python has no name for it
_MAXIMUM_CGROUP_BYTES = 65_536
# cgroupfs: /kubepods/burstable/pod<UID>/<container>; systemd: .../kubepods-burstable-pod<UID with _>.slice/...
_POD = re.compile(
    r"kubepods[^\n]*?[/-]pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})\b"
)


class UnknownPeer(Exception):
    """The peer is no process of a pod of this node; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as the kernel knows it."""

    pid: int
    pod_uid: str


def identify(connection: socket.socket, proc: Path = Path("/proc")) -> Peer:
    """Return the peer of a connected Unix socket.

    Args:
        connection: the connection.
        proc: the host's /proc, with process ids as this process sees them (hostPID).

    Raises:
        UnknownPeer: it is gone, or belongs to no pod.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _, _ = _CREDENTIALS.unpack(raw)
    if pid <= 0:
        raise UnknownPeer("the peer's process is not visible from the agent: hostPID is needed")
    guard = _pidfd(connection, pid)
    try:
        uid = pod_uid((proc / str(pid) / "cgroup").open("rb").read(_MAXIMUM_CGROUP_BYTES).decode(errors="replace"))
        if guard is not None and select.select([guard], [], [], 0)[0]:
            raise UnknownPeer(f"process {pid} ended while it was identified")
    except OSError:
        raise UnknownPeer(f"process {pid} ended while it was identified") from None
    finally:
        if guard is not None:
            os.close(guard)
    if uid is None:
        raise UnknownPeer(f"process {pid} belongs to no pod")
    return Peer(pid, uid)


def pod_uid(control_groups: str) -> str | None:
    """Return the pod UID in the text of /proc/PID/cgroup (version 1 or 2, cgroupfs or systemd names), or None."""
    found = {match.group(1) for match in _POD.finditer(control_groups)}
    if len(found) != 1:
        # None, or contradicting hierarchies: no pod can be named for sure.
        return None
    return found.pop().replace("_", "-")


def _pidfd(connection: socket.socket, pid: int) -> int | None:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None
