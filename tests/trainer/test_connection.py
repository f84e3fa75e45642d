"""The agent dies, stops, refuses and comes back while training runs: no hook raises or waits (invariant 3)."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import perseus_trainer
import pytest
from agent_side import AgentSide, AgentStarter, eventually, read
from perseus_api.messages import BoundaryKind, Verdict, Welcome
from perseus_trainer import Rank, Session


def train(session: Session, iterations: int, microbatches: int = 4) -> float:
    """Train and return the longest that a hook took, in seconds."""
    longest = 0.0
    for _ in range(iterations):
        begin = time.perf_counter()
        with session.iteration():
            for microbatch in range(microbatches):
                with session.instruction("forward", microbatch=microbatch):
                    pass
        longest = max(longest, time.perf_counter() - begin)
    return longest


def connected(session: Session) -> Session:
    eventually(lambda: session.connected, "the session is connected")
    return session


def test_an_agent_that_starts_after_training_is_found_and_told_the_true_iteration(rank: Rank, tmp_path: Path) -> None:
    session = perseus_trainer.connect(rank, str(tmp_path / "agent.sock"))
    train(session, 5)
    assert not session.connected
    side = AgentSide(tmp_path / "agent.sock")
    connection = side.serve()
    connected(session)
    train(session, 1, microbatches=0)
    first = read(connection)
    assert first is not None
    assert (first.kind, first.iteration) == (BoundaryKind.ITERATION_BEGIN, 5)
    session.close()
    side.close()


def test_training_goes_on_when_the_agent_is_killed_and_the_next_agent_is_found(
    rank: Rank, tmp_path: Path, start_agent: AgentStarter
) -> None:
    agent = start_agent()
    session = connected(perseus_trainer.connect(rank, str(tmp_path / "agent.sock")))
    train(session, 10)
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    train(session, 10)
    assert session.iteration_index == 19
    eventually(lambda: not session.connected, "the session sees that its agent is gone")
    start_agent()
    connected(session)
    train(session, 10)
    assert session.connected
    session.close()


def test_a_script_that_has_no_file_left_for_a_while_finds_the_next_agent_afterwards(
    rank: Rank, tmp_path: Path, start_agent: AgentStarter, caplog: pytest.LogCaptureFixture
) -> None:
    agent = start_agent()
    session = connected(perseus_trainer.connect(rank, str(tmp_path / "agent.sock")))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, allowed[1]))
    try:
        agent.kill()
        agent.wait()
        train(session, 10)
        eventually(lambda: "no socket to the agent" in caplog.text, "it is said")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    start_agent()
    connected(session)
    session.close()


def test_a_script_that_may_start_no_thread_trains_without_perseus(
    rank: Rank, agent_side: AgentSide, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    session = perseus_trainer.connect(rank, str(agent_side.path))
    train(session, 2)
    assert "nobody looks for the agent (can't start new thread)" in caplog.text
    session.close()


def test_a_killed_trainer_gives_its_lease_up_at_once(rank: Rank, agent_side: AgentSide) -> None:
    child = os.fork()
    if child == 0:
        session = perseus_trainer.connect(rank, str(agent_side.path))
        end = time.monotonic() + 60
        while time.monotonic() < end:
            train(session, 1)
            time.sleep(0.01)
        os._exit(1)
    connection = agent_side.serve()
    assert read(connection) is not None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    connection.settimeout(2.0)
    while read(connection) is not None:
        pass


def test_a_child_of_the_trainer_neither_holds_its_lease_nor_speaks_for_it(rank: Rank, agent_side: AgentSide) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    connected(session)
    go_on, finish = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(finish)
        train(session, 2)
        os.read(go_on, 1)
        os._exit(1 if session.connected else 0)
    os.close(go_on)
    train(session, 1, microbatches=0)
    kinds = [boundary.kind for boundary in (read(connection), read(connection)) if boundary is not None]
    assert kinds == [BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END]
    session.close()
    connection.settimeout(2.0)
    assert read(connection) is None, "the lease ends with its owner, though the child lives"
    os.close(finish)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_child_that_trains_asks_for_a_lease_of_its_own(rank: Rank, agent_side: AgentSide) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    connected(session)
    child = os.fork()
    if child == 0:
        train(session, 1)  # Nobody serves it yet.
        connected(session)
        train(session, 1)
        os._exit(0)
    of_the_child, hello = agent_side.accept()
    assert (hello.job, hello.stage, hello.pid) == (rank.job, rank.stage, child)
    of_the_child.send(Welcome(Verdict.SERVED).pack())
    told = []
    while (boundary := read(of_the_child)) is not None:
        told.append(boundary)
    assert (told[-1].kind, told[-1].iteration) == (BoundaryKind.ITERATION_END, 1)
    os.waitpid(child, 0)
    train(session, 1, microbatches=0)
    assert [each.iteration for each in (read(connection), read(connection)) if each is not None] == [0, 0]
    session.close()


def test_a_refusal_is_said_once_and_training_goes_on(
    rank: Rank, agent_side: AgentSide, caplog: pytest.LogCaptureFixture
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection, _ = agent_side.accept()
    connection.send(Welcome(Verdict.REFUSED, "GPU-1 is shared").pack())
    eventually(lambda: "the agent refused: GPU-1 is shared" in caplog.text, "the reason is in the log")
    train(session, 2)
    assert not session.connected
    assert connection.recv(64) == b"", "a refused trainer lets go"
    session.close()


@pytest.mark.parametrize("answer", [b"?", b"PRSW", b"\0" * 128, b"PRSW\x02\x00" + b"\0" * 122])
def test_an_answer_that_is_no_welcome_is_no_lease_and_the_next_try_is_served(
    answer: bytes, rank: Rank, agent_side: AgentSide
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection, _ = agent_side.accept()
    connection.send(answer)
    assert connection.recv(64) == b""
    train(session, 1)
    agent_side.serve()
    connected(session)
    session.close()


def test_an_absent_agent_is_looked_for_at_most_a_few_times_a_second(rank: Rank, agent_side: AgentSide) -> None:
    begin = time.monotonic()
    session = perseus_trainer.connect(rank, str(agent_side.path))
    tries = 4
    for _ in range(tries):
        connection, _ = agent_side.accept()
        connection.close()  # An agent that dies over each hello.
    # A slow machine only makes the tries rarer.
    assert time.monotonic() - begin >= (tries - 1) * 0.4
    session.close()


def test_a_socket_that_is_none_is_no_reason_to_stop(rank: Rank, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no socket")
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.bind(str(tmp_path / "stream"))
    stream.listen()
    for path in (tmp_path / "file", tmp_path / "stream", tmp_path / ("long" * 40), tmp_path / "nothing"):
        session = perseus_trainer.connect(rank, str(path))
        train(session, 2)
        assert not session.connected
        session.close()
    stream.close()


def test_a_closed_session_ends_its_thread_and_stays_silent(rank: Rank, agent_side: AgentSide) -> None:
    before = set(threading.enumerate())
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    connected(session)
    session.close()
    eventually(lambda: set(threading.enumerate()) <= before, "the connection's thread has ended")
    train(session, 3)
    assert read(connection) is None


def test_a_stopped_agent_never_makes_a_hook_wait(rank: Rank, tmp_path: Path, start_agent: AgentStarter) -> None:
    agent = start_agent()
    session = connected(perseus_trainer.connect(rank, str(tmp_path / "agent.sock")))
    os.kill(agent.pid, signal.SIGSTOP)
    # Many times what the socket holds. A send that waits for room would wait for its timeout, seconds long.
    assert train(session, 2_000) < 2.0
    assert session.connected, "a stopped agent is not a lost one"
    os.kill(agent.pid, signal.SIGCONT)
    train(session, 10)
    assert session.connected
    session.close()


def test_an_agent_that_is_stopped_and_then_killed_is_replaced(
    rank: Rank, tmp_path: Path, start_agent: AgentStarter
) -> None:
    agent = start_agent()
    session = connected(perseus_trainer.connect(rank, str(tmp_path / "agent.sock")))
    os.kill(agent.pid, signal.SIGSTOP)
    train(session, 500)
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    train(session, 1)
    start_agent()
    connected(session)
    session.close()


def test_a_child_forked_before_the_welcome_does_not_hold_the_lease(rank: Rank, agent_side: AgentSide) -> None:
    go_on, finish = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        os.close(finish)
        agent_side.close_listener()
        perseus_trainer.connect(rank, str(agent_side.path))
        time.sleep(0.3)  # Its thread waits for the welcome now.
        if os.fork() == 0:
            os.read(go_on, 1)
        os._exit(0)
    os.close(go_on)
    connection, _ = agent_side.accept()
    os.waitpid(trainer, 0)
    connection.settimeout(2.0)
    assert connection.recv(64) == b"", "the lease ends with its owner, though the child lives"
    os.close(finish)
