"""Who is at the other end of a socket: kernel credentials -> control group -> pod UID, never what the peer says.

A process id may be given to another process between two looks at it; a pidfd tells whether that has happened.

Only the kubelet makes the groups down to a pod's; what lies below (a container's, groups nested in it) the pod may name
as it likes, and so may users of the host whom systemd lends a part of the tree. So a pod's name counts only at its one
place: right below the kubelet's root, which is where this agent's own pod has it (``/kubepods``, or below the prefix
that the agent finds before its own ``kubepods``). Where the agent has a control group namespace of its own (version 2,
not privileged), other groups show as seen from there: ``/../../pod<UID>/<container>``.
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
# Names of cgroupfs (kubepods, burstable, pod<UID>) and of systemd (kubepods.slice, kubepods-burstable.slice,
# kubepods-burstable-pod<UID with _>.slice, each with the kubelet's own prefix where it has one).
_ROOT = re.compile(r"kubepods|(?:[A-Za-z0-9_.]+-)*kubepods\.slice")
_QOS = re.compile(r"besteffort|burstable|(?:[A-Za-z0-9_.]+-)*kubepods-(?:besteffort|burstable)\.slice")
_UID = r"([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_POD = re.compile(rf"pod{_UID}|(?:[A-Za-z0-9_.]+-)*kubepods(?:-besteffort|-burstable)?-pod{_UID}\.slice")


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
        uid = pod_uid(_groups(proc, str(pid)), _own_groups(proc))
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


def pod_uid(control_groups: str, own_groups: str = "") -> str | None:
    """Return the pod UID in the text of /proc/PID/cgroup, None if there is none or the hierarchies contradict.

    Args:
        control_groups: of the process, version 1 or 2.
        own_groups: of the agent itself, which show where the kubelet's root is.
    """
    prefixes = {(), *(prefix for path in _paths(own_groups) if (prefix := _prefix(path)) is not None)}
    found = {uid for path in _paths(control_groups) if (uid := _pod_of(path, prefixes))}
    # None, or contradicting hierarchies: no pod can be named for sure.
    return found.pop() if len(found) == 1 else None


def _pod_of(path: tuple[str, ...], prefixes: set[tuple[str, ...]]) -> str | None:
    rest = path
    while rest[:1] == ("..",):
        rest = rest[1:]
    if rest == path:
        # From the tree's root: the kubelet's own root must be where the agent's is.
        root = next((len(each) for each in prefixes if path[: len(each)] == each and _at(_ROOT, path, len(each))), None)
        if root is None:
            return None
        rest = path[root + 1 :]
    elif _at(_ROOT, rest, 0):
        rest = rest[1:]
    if _at(_QOS, rest, 0):
        rest = rest[1:]
    match = _POD.fullmatch(rest[0]) if rest else None
    return (match[1] or match[2]).replace("_", "-") if match else None


def _prefix(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """What stands before the kubelet's root in the agent's own path."""
    return next((path[:index] for index in range(len(path)) if _at(_ROOT, path, index)), None)


def _at(pattern: re.Pattern[str], path: tuple[str, ...], index: int) -> bool:
    return index < len(path) and pattern.fullmatch(path[index]) is not None


def _paths(text: str) -> list[tuple[str, ...]]:
    """The paths of all hierarchies, in parts; lines are ``hierarchy:controllers:path``."""
    lines = [line.split(":", 2) for line in text.split("\n")]
    return [tuple(part for part in line[2].split("/") if part) for line in lines if len(line) == 3]


def _groups(proc: Path, process: str) -> str:
    with (proc / process / "cgroup").open("rb") as file:
        return file.read(_MAXIMUM_CGROUP_BYTES).decode(errors="replace")


def _own_groups(proc: Path) -> str:
    try:
        return _groups(proc, "self")
    except OSError:
        return ""


def _pidfd(connection: socket.socket, pid: int) -> int | None:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None
