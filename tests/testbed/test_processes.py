"""Processes, locks and commands of the testbed, with real processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.errors import TestbedError
from testbed.execution import exclusive, run, run_long, wait_until
from testbed.processes import ProcessIdentity, ProcessTable, identity_of, kill, terminate
from testbed.site import Site

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
OBEDIENT = "import time; print(flush=True); time.sleep(600)"


class Started:
    """Processes of one test; none outlives it."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []

    def __call__(self, code: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, **environment}
        )
        self._all.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    started.end()


def record(site: Site, name: str, pid: int, start_ticks: int) -> None:
    folder = site.folders.state / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"pid": pid, "start_ticks": start_ticks}))


def identity(pid: int) -> ProcessIdentity:
    found = identity_of(pid)
    assert found is not None
    return found


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone(site: Site, start: Started) -> None:
    process = start(OBEDIENT)
    known = identity(process.pid)
    record(site, "server", known.pid, known.start_ticks)
    assert ProcessTable(site).find("server") == known
    record(site, "server", known.pid, known.start_ticks - 1)
    assert ProcessTable(site).find("server") is None


def test_stopping_a_recorded_number_that_a_stranger_took_over_leaves_the_stranger_alone(
    site: Site, start: Started
) -> None:
    stranger = start(OBEDIENT)
    record(site, "server", stranger.pid, identity(stranger.pid).start_ticks - 1)
    table = ProcessTable(site)
    table.stop("server")
    assert stranger.poll() is None
    assert table.names() == []


def test_a_process_that_ended_unwatched_is_not_alive(start: Started) -> None:
    process = start("print(flush=True)")
    assert process.stdout is not None
    process.stdout.read()
    wait_until("the process is a zombie", lambda: identity_of(process.pid) is None, timeout_seconds=60)


@pytest.mark.parametrize(("code", "ended_by"), [(OBEDIENT, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
def test_a_process_is_asked_to_end_and_killed_if_it_does_not(
    start: Started, code: str, ended_by: signal.Signals
) -> None:
    process = start(code)
    terminate([identity(process.pid)], grace_seconds=0.5)
    assert process.wait(timeout=60) == -ended_by


def test_signalling_a_process_that_is_gone_does_nothing(start: Started) -> None:
    process = start(OBEDIENT)
    known = identity(process.pid)
    kill([known])
    process.wait()
    known.signal(signal.SIGKILL)
    assert not known.is_alive()


def test_a_process_that_was_started_and_never_recorded_is_found_by_its_mark(site: Site, start: Started) -> None:
    ours = start(OBEDIENT, PERSEUS_TESTBED_IDENTITY=site.identity)
    start(OBEDIENT, PERSEUS_TESTBED_IDENTITY="another")
    assert ProcessTable(site).strays() == [identity(ours.pid)]


def test_a_lock_is_held_against_others_and_given_back_when_its_holder_is_killed(tmp_path: Path, start: Started) -> None:
    holder = start(
        "import time\nfrom pathlib import Path\nfrom testbed.execution import exclusive\n"
        f"with exclusive(Path({str(tmp_path / 'lock')!r}), 'the lock'):\n print(flush=True)\n time.sleep(600)",
        PYTHONPATH=str(Path(__file__).resolve().parents[2]),
    )
    waiting = subprocess.Popen(["flock", str(tmp_path / "lock"), "true"])
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=0.3)
    holder.kill()
    assert waiting.wait(timeout=60) == 0
    with exclusive(tmp_path / "lock", "the lock"):
        pass


def test_a_failed_command_says_what_it_printed() -> None:
    with pytest.raises(TestbedError, match=r"bash -c .* failed \(3\): no such thing"):
        run(["bash", "-c", "echo no such thing >&2; exit 3"])


def test_a_command_that_hangs_or_is_missing_is_named() -> None:
    with pytest.raises(TestbedError, match=r"sleep 60 took longer than 0 s"):
        run(["sleep", "60"], timeout_seconds=0.1)
    with pytest.raises(TestbedError, match="no-such-program is not installed"):
        run(["no-such-program"])


def test_a_long_command_that_fails_shows_the_end_of_its_own_log_only(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "long.log"
    run_long("the first", ["bash", "-c", "echo of the first run"], log=log)
    with pytest.raises(TestbedError) as failure:
        run_long("the second", ["bash", "-c", "echo of the second run; exit 4"], log=log)
    message = str(failure.value)
    assert "the second failed with exit code 4" in message
    assert str(log) in message
    assert "of the second run" in message
    assert "of the first run" not in message


def test_waiting_in_vain_names_what_was_waited_for() -> None:
    with pytest.raises(TestbedError, match="the impossible: not after 0 s"):
        wait_until("the impossible", lambda: False, timeout_seconds=0.01, period_seconds=0.001)
