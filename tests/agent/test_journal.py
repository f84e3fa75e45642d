"""The journal after power loss, on a damaged disk, from another version: never a lock left, no GPU more than needed."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agent_process import RELEASE_SECONDS, AgentProcess, Kubelet, Trainer, eventually, make_plan, waits_for_lock
from perseus_api.messages import Verdict
from perseus_daemonset import files
from perseus_daemonset.journal import Journal, kill_holder
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment

UUID = "GPU-0b0a1f6e-6c3e-4d0e-9f6b-2f4f8d1f0c11"


def test_an_entry_is_durable_before_the_lock_and_whole_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "content")
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        done.append("name")
        return real_rename(path, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    Journal(tmp_path).write(UUID)
    assert done == ["content", "name", "folder"]
    Journal(tmp_path).strike(UUID)
    assert done[3:] == ["folder"]
    assert Journal(tmp_path).entries().gpus == {}


@pytest.mark.parametrize("content", [b"", b'{"version": 1, "gp', b"\0" * 200, b"\xff" * 5000, b'{"version": 99}'])
def test_an_entrys_name_alone_counts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{UUID}.lock.json").write_bytes(content)
    entries = Journal(tmp_path).entries()
    assert list(entries.gpus) == [UUID]
    assert not entries.may_name_any_gpu


def test_a_spoilt_name_is_made_up_for_by_the_content(tmp_path: Path) -> None:
    (tmp_path / "#1234.lock.json").write_text(json.dumps({"version": 1, "gpu": UUID}))
    assert list(Journal(tmp_path).entries().gpus) == [UUID]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"gpu": 7}', b'{"gpu": "../../etc"}', b"[" * 4000])
def test_an_entry_that_names_nothing_may_have_named_any_gpu(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "#1234.lock.json").write_bytes(content)
    assert Journal(tmp_path).entries().may_name_any_gpu


def test_a_draft_is_no_entry_and_is_tidied_away(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.lock.json.draft").write_text("{}")
    journal = Journal(tmp_path)
    assert journal.entries().gpus == {}
    journal.tidy()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uuid", ["", "GPU-", "../../etc/passwd", "GPU-0/1", "MIG-0b0a1f6e-6c3e", "0"])
def test_only_a_gpus_uuid_is_written(tmp_path: Path, uuid: str) -> None:
    with pytest.raises(ValueError, match="not the UUID"):
        Journal(tmp_path).write(uuid)


def killed_while_locked(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> Path:
    """Leave rank 0 locked; return its journal entry."""
    agent.plan(make_plan())
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    agent.kill()
    return agent.folder / "journal" / agent.journalled[0]


def test_a_torn_entry_is_released_and_no_gpu_more(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    killed_while_locked(agent, trainer, node).write_bytes(b"\0\0")
    agent.start()
    assert node.gpus[0].locked_range() is None
    assert node.gpus[1].calls["reset_locked_clocks"] == 0
    assert agent.journalled == []


def test_a_journal_that_may_name_any_gpu_frees_them_all(node: SimulatedNode, kubelet: Kubelet, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, simulator_environment(node))
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "#1234.lock.json").write_bytes(b"\0" * 100)
    node.gpus[1].foreign_lock(810, 810)
    agent.start()
    assert not any(gpu.locked_range() for gpu in node.gpus)
    assert agent.journalled == []
    agent.kill()


def test_an_entry_of_a_later_version_is_released(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    killed_while_locked(agent, trainer, node).write_text(json.dumps({"version": 99, "what": "is this"}))
    agent.start()
    assert node.gpus[0].locked_range() is None


def test_a_gpu_that_is_no_more_is_struck_out(agent: AgentProcess) -> None:
    agent.kill()
    (agent.folder / "journal" / f"{UUID}.lock.json").write_text("{}")
    agent.start()
    assert agent.journalled == []


def test_a_lock_that_cannot_be_given_back_at_the_start_is_owed_and_nobody_is_served_meanwhile(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    killed_while_locked(agent, trainer, node)
    node.gpus[0].inject(unknown=True)
    agent.start()
    agent.pod(0)
    assert node.gpus[0].locked_range() == (810, 810)
    assert "could not be unlocked yet" in Trainer(agent.path).hello(node.gpus[0].uuid).reason
    node.gpus[0].clear()
    eventually(lambda: node.gpus[0].locked_range() is None, "it is unlocked as soon as it lets itself", RELEASE_SECONDS)
    eventually(lambda: agent.journalled == [], "and struck out")
    # The entry goes before the agent's memory of it.
    eventually(lambda: Trainer(agent.path).hello(node.gpus[0].uuid).verdict is Verdict.SERVED, "it is served again")


def test_a_start_does_not_wait_for_a_gpu_that_hangs(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    entry = killed_while_locked(agent, trainer, node)
    entry.with_name(f"{node.gpus[1].uuid}.lock.json").write_text("{}")
    node.gpus[1].foreign_lock(900, 900)
    node.gpus[0].inject(call_latency_seconds=20.0)
    process = subprocess.Popen([sys.executable, "-m", "perseus_daemonset.main", "release"], env=command(agent, node))
    eventually(lambda: node.gpus[1].locked_range() is None, "the other one is not kept waiting", RELEASE_SECONDS)
    process.kill()
    process.wait()


def command(agent: AgentProcess, node: SimulatedNode) -> dict[str, str]:
    return {**simulator_environment(node), "PERSEUS_JOURNAL_FOLDER": str(agent.folder / "journal")}


def test_a_persons_hand_is_refused_while_an_agent_runs(agent: AgentProcess, node: SimulatedNode) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "perseus_daemonset.main", "release"],
        env=command(agent, node), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "an agent runs and gives the clocks back itself" in done.stderr


def test_a_watchdog_told_to_stop_does_the_last_duty_of_an_agent_that_hangs(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    watchdog = subprocess.Popen([sys.executable, "-m", "perseus_daemonset.main", "watchdog"], env=command(agent, node))
    try:
        agent.plan(make_plan())
        trainer.begin(1)
        eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
        agent.signal(signal.SIGSTOP)
        eventually(lambda: waits_for_lock(watchdog.pid), "the watchdog waits in the kernel", 60)
        watchdog.terminate()
        eventually(lambda: node.gpus[0].locked_range() is None, "the clock is free", RELEASE_SECONDS)
        assert watchdog.wait(5) == 0
    finally:
        agent.signal(signal.SIGCONT)
        watchdog.kill()


def test_a_watchdog_told_to_stop_kills_an_agent_that_goes_on_serving(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    """What is given back under its hands it would lock again, past the journal, and nobody comes after it."""
    watchdog = subprocess.Popen([sys.executable, "-m", "perseus_daemonset.main", "watchdog"], env=command(agent, node))
    try:
        agent.plan(make_plan())
        eventually(lambda: waits_for_lock(watchdog.pid), "the watchdog waits in the kernel", 60)
        watchdog.terminate()
        with contextlib.suppress(OSError):
            for iteration in itertools.count(1):
                has_ended = watchdog.poll() is not None
                trainer.begin(iteration)
                trainer.run(iteration, "FB")
                trainer.end(iteration)
                if has_ended:
                    break
        assert watchdog.wait(5) == 0
        assert node.gpus[0].calls["set_locked_clocks"] > 1
        assert node.gpus[0].locked_range() is None
        assert agent.journalled == []
    finally:
        agent.kill()
        watchdog.kill()


def test_only_the_process_that_wrote_itself_down_is_killed(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for written in (f"{stranger.pid} 12345", str(stranger.pid), "", "x y", "999999999 1"):
            (tmp_path / "holder").write_text(written)
            assert not kill_holder(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_signal_that_another_thread_takes_ends_the_agent_too() -> None:
    program = (
        "import signal, threading, time\n"
        "from perseus_daemonset.agent import wait_until_told\n"
        "stopped = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: stopped.set())\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "print('waits', flush=True)\n"
        "wait_until_told(stopped)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        others = [int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()]
        others.remove(process.pid)
        # As the kernel may give it, which asks the main thread first, and another where that has a signal already.
        assert ctypes.CDLL(None).tgkill(process.pid, others[0], signal.SIGTERM) == 0
        assert process.wait(10) == 0
    finally:
        process.kill()


def test_a_watchdog_told_to_stop_leaves_a_living_agents_end_to_the_agent(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    watchdog = subprocess.Popen([sys.executable, "-m", "perseus_daemonset.main", "watchdog"], env=command(agent, node))
    eventually(lambda: waits_for_lock(watchdog.pid), "the watchdog waits in the kernel", 60)
    watchdog.terminate()
    agent.stop()
    assert watchdog.wait(5) == 0


def test_a_journal_that_cannot_be_written_leaves_the_clock_alone(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    """A full or read-only disk: what cannot be written down is not locked."""
    folder = agent.folder / "journal"
    folder.rename(agent.folder / "away")
    try:
        agent.plan(make_plan())
        trainer.begin(1)
        eventually(lambda: 'reason="journal"' in agent.counters()["metrics"], "the reason is told")
        assert node.gpus[0].locked_range() is None
        assert node.gpus[0].calls["set_locked_clocks"] == 0
    finally:
        (agent.folder / "away").rename(folder)
