"""Runs the programs the testbed drives, so that a failure tells what to do and a long wait shows that it lives.

Two kinds only: short commands whose output is the answer, and long ones whose output goes to a log while a line with
the elapsed time appears now and then. Locks live here too, since both builds and clusters are shared by parallel
callers.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from testbed.errors import TestbedError

HEARTBEAT_SECONDS = 30.0
LOG_TAIL_CHARACTERS = 3000


def say(text: str) -> None:
    """Print one progress line at once; stdout is kept for answers that scripts read."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def run(
    arguments: Sequence[str | Path],
    *,
    text_input: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_seconds: float = 120.0,
) -> str:
    """Run a short command and return its standard output.

    Raises:
        TestbedError: it failed or took too long; the message holds its error output.
    """
    command = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            command,
            input=text_input,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
    except FileNotFoundError as error:
        raise TestbedError(f"{command[0]} is not installed: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise TestbedError(f"{' '.join(command)} took longer than {timeout_seconds:.0f} s") from error
    if done.returncode:
        raise TestbedError(f"{' '.join(command)} failed ({done.returncode}): {(done.stderr or done.stdout).strip()}")
    return done.stdout


def attempt(arguments: Sequence[str | Path], *, timeout_seconds: float = 60.0) -> bool:
    """Run a clean-up command whose failure only means that there was nothing to clean; True if it succeeded."""
    try:
        run(arguments, timeout_seconds=timeout_seconds)
    except TestbedError:
        return False
    return True


def run_long(
    title: str,
    arguments: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a long command with its output in ``log``, and tell the elapsed time every half a minute.

    Raises:
        TestbedError: it failed; the message holds the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{title} ...")
    started = time.monotonic()
    with log.open("ab") as output:
        begin = output.tell()
        try:
            process = subprocess.Popen(
                [str(argument) for argument in arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **(environment or {})},
            )
        except FileNotFoundError as error:
            raise TestbedError(f"{title}: {arguments[0]} is not installed") from error
        try:
            while True:
                try:
                    code = process.wait(HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say(f"{title} ... {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        with log.open("rb") as written:
            written.seek(begin)
            tail = written.read().decode(errors="replace")[-LOG_TAIL_CHARACTERS:]
        raise TestbedError(f"{title} failed with exit code {code}; see {log}:\n{tail}")
    say(f"{title}: done in {time.monotonic() - started:.0f} s")


def wait_until(what: str, ready: Callable[[], bool], *, timeout_seconds: float, period_seconds: float = 0.1) -> None:
    """Wait for a condition of another process that offers no event to wait on.

    Raises:
        TestbedError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TestbedError(f"{what}: not after {timeout_seconds:.0f} s")
        time.sleep(period_seconds)


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a file lock; the kernel gives it back when the holder dies, so a killed run blocks nobody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {what}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
