"""The journal of locks: one file on the host for each GPU that we have locked and not yet given back.

NVML cannot tell which clocks are locked, and a lock survives its maker: so what is locked is written down first, and
struck out after it was given back. Whoever finds an entry without a living agent (the watchdog, the next start)
unlocks that GPU. The files survive power loss: content and name are synced before the lock is made.

A damaged journal never leaves a lock behind. An entry's name alone counts, whatever its content; if the name is spoilt,
the content does; if neither tells which GPU was meant, or the folder cannot be listed, any GPU may have been.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perseus_daemonset.files import DRAFT_SUFFIX, read_bounded, sync_names, write_whole

VERSION = 1
MAXIMUM_ENTRY_BYTES = 4096
_SUFFIX = ".lock.json"
_HOLDER = "holder"
_UUID = re.compile(r"GPU-[0-9a-fA-F-]{8,64}")


@dataclass(frozen=True)
class Entries:
    """What the journal says.

    Attributes:
        gpus: UUIDs written down, with the files that name each.
        damaged: files that are entries and name no GPU.
        readable: whether the folder could be listed.
    """

    gpus: dict[str, tuple[Path, ...]]
    damaged: tuple[Path, ...] = ()
    readable: bool = True

    @property
    def may_name_any_gpu(self) -> bool:
        """Whether something was written down of which nobody can tell what it was."""
        return bool(self.damaged) or not self.readable


class Journal:
    """The entries in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, making it if need be."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder

    def write(self, uuid: str) -> None:
        """Write down that a GPU is about to be locked; durable when this returns.

        Raises:
            ValueError: this is no GPU's UUID.
            OSError: the host's file system refused.
        """
        if not _UUID.fullmatch(uuid):
            raise ValueError(f"{uuid[:80]!r} is not the UUID of a GPU")
        content = json.dumps({"version": VERSION, "gpu": uuid, "time": time.time(), "pid": os.getpid()})
        write_whole(self._folder / f"{uuid}{_SUFFIX}", content, durable=True)

    def strike(self, uuid: str) -> None:
        """Strike out a GPU that was given back.

        Raises:
            OSError: the host's file system refused.
        """
        self.remove((self._folder / f"{uuid}{_SUFFIX}",))

    def remove(self, paths: tuple[Path, ...]) -> None:
        """Strike out the entries in these files.

        Raises:
            OSError: the host's file system refused.
        """
        for path in paths:
            path.unlink(missing_ok=True)
        sync_names(self._folder)

    def entries(self) -> Entries:
        """Return what is written down."""
        try:
            names = sorted(os.listdir(self._folder))
        except OSError:
            return Entries({}, readable=False)
        found: dict[str, tuple[Path, ...]] = {}
        damaged = []
        for name in names:
            # A draft is no entry: its lock was never made.
            if name.endswith(_SUFFIX):
                path = self._folder / name
                uuid = _named(path)
                if uuid:
                    found[uuid] = (*found.get(uuid, ()), path)
                else:
                    damaged.append(path)
        return Entries(found, tuple(damaged))

    def tidy(self) -> None:
        """Remove drafts that a death left."""
        for path in self._folder.glob(f"*{DRAFT_SUFFIX}"):
            path.unlink(missing_ok=True)


def _named(path: Path) -> str:
    uuid = path.name.removesuffix(_SUFFIX)
    if _UUID.fullmatch(uuid):
        return uuid
    try:
        content = json.loads(read_bounded(path, MAXIMUM_ENTRY_BYTES))
        uuid = content["gpu"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    return uuid if isinstance(uuid, str) and _UUID.fullmatch(uuid) else ""


@contextlib.contextmanager
def sole_holder(folder: Path) -> Iterator[None]:
    """Hold the journal's file lock: the sign of a living agent, taken away by the kernel with the process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / _HOLDER).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            handle.truncate(0)
            handle.write(f"{os.getpid()} {_start_of(os.getpid())}")
            handle.flush()
        yield


def kill_holder(folder: Path) -> bool:
    """SIGKILL who holds the journal's file lock, by what it wrote into the file; return whether it was found.

    Both containers of the agent's pod see the node's processes. An id that somebody else got meanwhile is not meant:
    the moment of the process's start must be the one written down.
    """
    try:
        pid, start = (folder / _HOLDER).read_text().split()
        descriptor = os.pidfd_open(int(pid))
    except (OSError, ValueError):
        return False
    try:
        if _start_of(int(pid)) != start:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


@contextlib.contextmanager
def holder_if_free(folder: Path) -> Iterator[bool]:
    """The same without waiting: tells whether the lock is held now."""
    with (folder / _HOLDER).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
