"""The hooks as decorators and without a session of one's own; what a script does wrong is said once, and goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import perseus_trainer
import pytest
from agent_side import AgentSide, eventually, read
from perseus_api import names
from perseus_api.instructions import LONGEST_ORDER, Instruction
from perseus_api.messages import BoundaryKind, Verdict, Welcome
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline
from perseus_planner.given import load_orders
from perseus_trainer import Rank, Recorded, Session, order_document
from perseus_trainer import session as session_module

FORWARD, BACKWARD = Instruction.FORWARD, Instruction.BACKWARD


@pytest.fixture
def session() -> Session:
    """One that records without an agent."""
    return perseus_trainer.connect(record=True)


@pytest.fixture
def no_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(session_module, "_default", None)
    yield
    if session_module._default is not None:
        session_module._default.close()


def test_plain_functions_become_instructions_and_their_microbatches_are_counted(session: Session) -> None:
    @session.instruction("forward")
    def forward(value: int) -> int:
        return value + 1

    @session.instruction("backward", chunk=1)
    def backward(value: int) -> int:
        return -value

    @session.iteration()
    def train_step(count: int) -> list[int]:
        return [backward(forward(each)) for each in range(count)]

    assert train_step(2) == [-1, -2]
    assert session.recorded_order() == (
        Recorded(FORWARD, 0, 0),
        Recorded(BACKWARD, 0, 1),
        Recorded(FORWARD, 1, 0),
        Recorded(BACKWARD, 1, 1),
    )
    assert train_step(1) == [-1], "each iteration counts from 0"
    assert session.recorded_order() == (Recorded(FORWARD, 0, 0), Recorded(BACKWARD, 0, 1))
    assert session.iteration_index == 1


def test_a_decorated_function_with_a_given_microbatch_keeps_it(session: Session) -> None:
    @session.instruction("forward", microbatch=7)
    def forward() -> None:
        return None

    with session.iteration():
        forward()
        forward()
    assert [step.microbatch for step in session.recorded_order()] == [7, 7]


def test_a_decorated_function_keeps_its_name_and_passes_its_exceptions(session: Session) -> None:
    @session.instruction("forward")
    def forward() -> None:
        """What it does."""
        raise KeyError("a word")

    assert (forward.__name__, forward.__doc__) == ("forward", "What it does.")
    with pytest.raises(KeyError), session.iteration():
        forward()
    assert session.recorded_order() == (), "an iteration that an exception left has no order to go by"


def test_without_an_agent_a_decorator_returns_the_function_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_SOCKET, raising=False)
    session = perseus_trainer.connect()

    def forward() -> None:
        return None

    assert session.instruction("forward")(forward) is forward
    assert session.iteration()(forward) is forward
    assert session.recorded_order() == ()


@pytest.mark.usefixtures("no_default")
def test_the_module_has_hooks_of_the_process_own_session(
    agent_side: AgentSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        names.ENV_SOCKET: str(agent_side.path),
        names.ENV_NAMESPACE: "research",
        names.ENV_JOB: "gpt",
        names.ENV_RANK: "1",
        names.ENV_STAGES: "2",
    }.items():
        monkeypatch.setenv(name, value)
    with perseus_trainer.iteration():
        pass
    connection, hello = agent_side.accept()
    assert (hello.job, hello.stage) == ("gpt", 1)
    connection.send(Welcome(Verdict.SERVED).pack())
    eventually(lambda: perseus_trainer.default_session().connected, "the session is connected")
    with perseus_trainer.iteration(), perseus_trainer.instruction("forward", microbatch=3):
        pass
    told = [read(connection) for _ in range(4)]
    assert [(each.iteration, each.microbatch) for each in told if each is not None] == [(1, 0), (1, 3), (1, 3), (1, 0)]


@pytest.mark.usefixtures("no_default")
def test_threads_share_one_session_however_they_race(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_SOCKET, raising=False)
    made: list[int] = []
    connect = session_module.connect

    def slow() -> Session:
        made.append(1)
        time.sleep(0.05)
        return connect()

    monkeypatch.setattr(session_module, "connect", slow)
    found: list[Session] = []
    threads = [threading.Thread(target=lambda: found.append(perseus_trainer.default_session())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len({id(each) for each in found}) == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("outside", "an instruction ran outside of an iteration"),
        ("nested", "an instruction began before another had ended"),
        ("twice", "an iteration began inside of another"),
    ],
)
def test_hooks_out_of_order_are_said_once_and_training_goes_on(
    script: str, said: str, agent_side: AgentSide, rank: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    for _ in range(3):
        match script:
            case "outside":
                with session.instruction("forward"):
                    pass
            case "nested":
                with session.iteration(), session.instruction("forward"), session.instruction("backward"):
                    pass
            case "twice":
                with session.iteration(), session.iteration():
                    pass
    assert caplog.text.count(said) == 1
    with session.iteration(100):
        pass
    seen = read(connection)
    while seen is not None and seen.iteration != 100:
        seen = read(connection)
    assert seen is not None
    assert seen.kind is BoundaryKind.ITERATION_BEGIN
    session.close()


def test_a_crash_in_the_middle_of_an_iteration_leaves_the_next_one_whole(session: Session) -> None:
    def step(fails: bool) -> None:
        with session.iteration():
            with session.instruction("forward"):
                if fails:
                    raise ValueError("a bad batch")
            with session.instruction("backward"):
                pass

    with pytest.raises(ValueError, match="a bad batch"):
        step(fails=True)
    step(fails=False)
    assert [step.instruction for step in session.recorded_order()] == [FORWARD, BACKWARD]


def test_the_recorded_order_is_that_of_the_last_whole_iteration(session: Session) -> None:
    for microbatches in (2, 3):
        with session.iteration():
            for instruction in ("forward", "backward"):
                for microbatch in range(microbatches):
                    with session.instruction(instruction, microbatch=microbatch):
                        pass
    with session.iteration(), session.instruction("forward"):
        assert len(session.recorded_order()) == 6, "the running one does not count yet"
    with session.iteration():
        pass
    assert len(session.recorded_order()) == 1, "an iteration without instructions is none"


def test_a_recording_is_bounded(session: Session) -> None:
    with session.iteration(), session.instruction("forward"):
        pass
    with session.iteration():
        for _ in range(LONGEST_ORDER + 10):
            with session.instruction("forward"):
                pass
    assert len(session.recorded_order()) == 1


def test_an_unknown_schedule_becomes_one_that_the_planner_knows() -> None:
    """Two ranks run an order of nobody's: the last microbatch first."""
    orders = []
    for _ in range(2):
        session = perseus_trainer.connect(record=True)
        with session.iteration():
            for microbatch in (2, 1, 0):
                with session.instruction("forward", microbatch=microbatch):
                    pass
            for microbatch in (2, 1, 0):
                with session.instruction("backward_input", microbatch=microbatch):
                    pass
                with session.instruction("backward_weight", microbatch=microbatch):
                    pass
        orders.append(session.recorded_order())
    loaded = load_orders(order_document(orders))
    assert [[tuple(step) for step in order] for order in loaded] == [
        [tuple(step) for step in order] for order in orders
    ]
    assert Pipeline.of_orders(loaded).schedule is Schedule.CUSTOM


def test_an_order_of_a_stage_that_ran_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 1 has recorded no order"):
        order_document([(Recorded(FORWARD, 0, 0),), ()])


def test_a_script_that_forks_trains_on_and_its_child_is_silent(
    agent_side: AgentSide, rank: Rank, tmp_path: Path
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    with session.iteration(5):
        child = os.fork()
        if child == 0:
            with session.instruction("forward"):
                (tmp_path / "child").write_text("trained")
            os._exit(0)
        os.waitpid(child, 0)
        with session.instruction("backward"):
            pass
    assert (tmp_path / "child").read_text() == "trained"
    told = [read(connection) for _ in range(4)]
    assert [each.instruction for each in told if each is not None] == [None, BACKWARD, BACKWARD, None]
    session.close()
