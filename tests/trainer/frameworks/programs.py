"""Runs the program of a framework's ranks and reads what each rank wrote down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 400.0  # on a machine that does much else


@contextlib.contextmanager
def program(name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program of this folder; it and its ranks end with the context at the latest."""
    with (folder / "ranks.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / name), str(folder)],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def results(process: subprocess.Popen[bytes], folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Wait for a program's end; return what its ranks wrote down."""
    status = process.wait(TIMEOUT_SECONDS)
    assert status == 0, (folder / "ranks.log").read_text()[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
