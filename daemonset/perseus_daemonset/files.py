"""Small files that are either as they were or as they shall be, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

DRAFT_SUFFIX = ".draft"


def write_whole(path: Path, content: str, *, durable: bool) -> None:
    """Write a file at once; a durable one survives power loss, name and content, when this returns.

    Raises:
        OSError: the file system refused.
    """
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    with draft.open("w") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    draft.rename(path)
    if durable:
        sync_names(path.parent)


def sync_names(folder: Path) -> None:
    """Make names made or removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, maximum_bytes: int) -> str:
    """Return a file's text, what is beyond a bound left out and what is no text replaced.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(maximum_bytes).decode(errors="replace")
