"""The journal of locks: one file on the host for each GPU that we have locked and not yet given back.

NVML cannot tell which clocks are locked, and a lock survives its maker: so what is locked is written down first, and
struck out after it was given back. Whoever finds an entry without a living agent (the watchdog, the next start)
unlocks that GPU. The files survive power loss: content and name are synced before the lock is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

VERSION = 1
_SUFFIX = ".lock.json"
_UUID = re.compile(r"GPU-[0-9a-fA-F-]{8,64}")


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
        path = self._folder / f"{uuid}{_SUFFIX}"
        draft = path.with_suffix(".draft")
        content = json.dumps({"version": VERSION, "gpu": uuid, "time": time.time(), "pid": os.getpid()})
        with draft.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        self._sync_names()

    def strike(self, uuid: str) -> None:
        """Strike out a GPU that was given back."""
        (self._folder / f"{uuid}{_SUFFIX}").unlink(missing_ok=True)
        self._sync_names()

    def entries(self) -> list[str]:
        """Return the UUIDs written down. The name alone counts: a torn content still means a lock."""
        found = (path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}"))
        return sorted(uuid for uuid in found if _UUID.fullmatch(uuid))

    def _sync_names(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def sole_holder(folder: Path) -> Iterator[None]:
    """Hold the journal's file lock: the sign of a living agent, taken away by the kernel with the process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "holder").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
