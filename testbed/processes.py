"""Starts and stops the cluster's processes without ever mistaking a stranger for one of them.

A process id alone may belong to anybody after a reboot or a wrap-around, so each is recorded with its start time. A run
that is killed between starting a process and recording it leaves an unrecorded one: every process therefore carries the
testbed's identity in its environment (container shims inherit it), which finds the strays.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import TestbedError
from testbed.execution import wait_until
from testbed.site import Site

_MARKER = "PERSEUS_TESTBED_IDENTITY"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Whether exactly this process still runs."""
        return identity_of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        # A process file descriptor closes the gap between the check and the signal.
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None if there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name is in parentheses and may hold spaces; the fields after it are fixed.
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return ProcessIdentity(pid, int(fields[19]))


def terminate(processes: Sequence[ProcessIdentity], *, grace_seconds: float) -> None:
    """Ask processes to end, and kill those that have not after the grace period."""
    for process in processes:
        process.signal(signal.SIGTERM)
    try:
        wait_until("processes end", lambda: not _alive(processes), timeout_seconds=grace_seconds, period_seconds=0.05)
    except TestbedError:
        kill(processes)


def kill(processes: Sequence[ProcessIdentity]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        process.signal(signal.SIGKILL)
    wait_until("killed processes are gone", lambda: not _alive(processes), timeout_seconds=30, period_seconds=0.05)


def _alive(processes: Sequence[ProcessIdentity]) -> list[ProcessIdentity]:
    return [process for process in processes if process.is_alive()]


class ProcessTable:
    """The recorded processes of one testbed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._folder = site.folders.state / "processes"

    def names(self) -> list[str]:
        """Every recorded name, alive or not."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def find(self, name: str) -> ProcessIdentity | None:
        """The recorded process, if it is alive."""
        try:
            record = json.loads((self._folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        identity = ProcessIdentity(record["pid"], record["start_ticks"])
        return identity if identity.is_alive() else None

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> ProcessIdentity:
        """Start a process in the testbed's network namespace, with its output in its log, and record it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._site.folders.logs.mkdir(parents=True, exist_ok=True)
        with (self._site.folders.logs / f"{name}.log").open("ab") as log:
            # nsenter, since "ip netns exec" hides /sys/fs/cgroup; it replaces itself by the program.
            process = subprocess.Popen(
                ["nsenter", f"--net={self._site.namespace_path}", "--", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._site.folders.state,
                env={**os.environ, **environment, _MARKER: self._site.identity},
            )
        identity = identity_of(process.pid)
        if identity is None:
            raise TestbedError(f"{name} ended at once; see {self._site.folders.logs / name}.log")
        record = self._folder / f"{name}.json"
        draft = record.with_suffix(".draft")
        draft.write_text(json.dumps({"pid": identity.pid, "start_ticks": identity.start_ticks}))
        draft.rename(record)
        return identity

    def stop(self, name: str, *, grace_seconds: float = 5.0) -> None:
        """End a recorded process and forget it."""
        identity = self.find(name)
        if identity is not None:
            terminate([identity], grace_seconds=grace_seconds)
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def strays(self) -> list[ProcessIdentity]:
        """Every living process that carries this testbed's mark, recorded or not."""
        needle = f"{_MARKER}={self._site.identity}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # It ended meanwhile.
                continue
            identity = identity_of(int(entry.name))
            if needle in variables and identity is not None:
                found.append(identity)
        return found
