"""Telling on the terminal what happens, with the elapsed time, and with progress for what takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Narrator:
    """Prints lines that begin with the elapsed time; progress lines overwrite themselves on a terminal."""

    def __init__(self) -> None:
        self._start_seconds = time.monotonic()
        self._open_line = False

    def say(self, text: str) -> None:
        """Print one line."""
        self._close_line()
        print(f"{self._elapsed()}  {text}", flush=True)

    def heading(self, text: str) -> None:
        """Print the heading of a step."""
        self._close_line()
        print(f"\n{self._elapsed()}  == {text}", flush=True)

    def progress(self, text: str) -> None:
        """Show how far a step is; only on a terminal."""
        if sys.stdout.isatty():
            print(f"\r\033[K{self._elapsed()}  .. {text}", end="", flush=True)
            self._open_line = True

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print when a step begins, and how long it took."""
        begin_seconds = time.monotonic()
        self.say(f"{text} ...")
        yield
        self.say(f"{text}: done in {time.monotonic() - begin_seconds:.1f} s")

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._start_seconds)
        return f"[{seconds // 60:2d}:{seconds % 60:02d}]"

    def _close_line(self) -> None:
        if self._open_line:
            print(flush=True)
            self._open_line = False
