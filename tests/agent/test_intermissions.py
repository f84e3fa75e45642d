"""Between two iterations a script may do something else for long: nothing was planned for it, so the clock is free.

An iteration's end may be told with a time that is long past, so that no test waits for a silence to grow.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from agent_process import BASELINE, PLAN_NAME, AgentProcess, Trainer, eventually, make_plan, variant_of
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_daemonset.accounting import RankAccount
from perseus_daemonset.baselines import Unlocked
from perseus_daemonset.caretaker import Caretaker
from perseus_daemonset.intermission import patience_seconds
from perseus_daemonset.lease import Lease
from perseus_simulator.node import SimulatedGpu, SimulatedNode
from test_controller import UUID, Hand
from test_metrics import series, value
from test_registry import KEY, POD

HOUR = 3600.0
FORWARD, BACKWARD = Instruction.FORWARD, Instruction.BACKWARD


def tell(
    connection: socket.socket,
    kind: BoundaryKind,
    iteration: int,
    instruction: Instruction | None = None,
    seconds_ago: float = 0.0,
) -> None:
    """Send one boundary with a time that is past."""
    moment = time.monotonic_ns() - int(seconds_ago * 1e9)
    connection.send(Boundary(kind, iteration, moment, instruction).pack())


def train(trainer: Trainer, iteration: int) -> None:
    trainer.begin(iteration)
    trainer.run(iteration, "FB")
    trainer.end(iteration)


def locked(gpu: SimulatedGpu, clock: int) -> None:
    eventually(lambda: gpu.locked_range() == (clock, clock), f"the clock is locked at {clock} MHz")


def free(gpu: SimulatedGpu) -> None:
    eventually(lambda: gpu.locked_range() is None, "the clock is given back")


def intermit(agent: AgentProcess, trainer: Trainer, gpu: SimulatedGpu) -> None:
    """Run an iteration under a plan, and be silent after it until the clock is given back."""
    agent.plan(make_plan())
    trainer.begin(1)
    trainer.run(1, "FB")
    tell(trainer.connection, BoundaryKind.ITERATION_END, 1, seconds_ago=HOUR)
    eventually(lambda: value(agent, "perseus_clock_intermissions_total", stage="0") == 1, "it is an intermission")
    free(gpu)


def test_the_clock_is_given_back_after_a_silence_and_set_again_when_the_next_iteration_begins(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    gpu = node.gpus[0]
    agent.plan(make_plan())
    train(trainer, 1)
    locked(gpu, 810)
    free(gpu)  # After the real second and no message at all.
    eventually(lambda: agent.journalled == [], "the journal names nothing")
    (rank,) = agent.counters()["report"]["ranks"]
    assert (rank["state"], rank["requestedMegahertz"]) == ("following", None)
    assert rank["explanation"].startswith("the script does something else since its last iteration")
    trainer.begin(2)
    locked(gpu, 810)
    trainer.run(2, "F")
    locked(gpu, 1005)
    trainer.run(2, "B")
    trainer.end(2)
    trainer.begin(3)
    eventually(lambda: value(agent, "perseus_pipeline_iteration") == 3, "the next one runs")
    assert value(agent, "perseus_iterations_total", stage="0") == 2, "the planned iterations count"
    assert value(agent, "perseus_mismatches_total", stage="0") == 0
    assert value(agent, "perseus_clock_intermissions_total", stage="0") == 1
    (rank,) = agent.counters()["report"]["ranks"]
    assert (rank["state"], rank["explanation"]) == ("following", "")


def test_within_an_iteration_no_silence_is_long_enough(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    gpu, connection = node.gpus[0], trainer.connection
    agent.plan(make_plan(order=["FFFB", "FFFB"], variants=[variant_of(*[810] * 4)]))
    trainer.begin(1)
    trainer.run(1, "FFFB")
    tell(connection, BoundaryKind.ITERATION_END, 1, seconds_ago=HOUR)
    tell(connection, BoundaryKind.ITERATION_BEGIN, 2, seconds_ago=HOUR)
    calls = {}
    for count in (5, 6, 7):
        tell(connection, BoundaryKind.INSTRUCTION_BEGIN, 2, FORWARD, seconds_ago=HOUR)
        tell(connection, BoundaryKind.INSTRUCTION_END, 2, FORWARD, seconds_ago=HOUR)
        # Nobody but the caretaker brings these into the books: it has looked.
        eventually(lambda: instructions(agent) == count, "the caretaker has looked")  # noqa: B023 - awaited here
        calls = calls or dict(gpu.calls)
    tell(connection, BoundaryKind.INSTRUCTION_BEGIN, 2, BACKWARD, seconds_ago=HOUR)
    tell(connection, BoundaryKind.INSTRUCTION_END, 2, BACKWARD)
    eventually(lambda: instructions(agent) == 8, "the last one has ended")
    assert gpu.locked_range() == (810, 810)
    assert all(gpu.calls[each] == calls[each] for each in ("set_locked_clocks", "reset_locked_clocks"))
    tell(connection, BoundaryKind.ITERATION_END, 2, seconds_ago=HOUR)
    free(gpu)


def instructions(agent: AgentProcess) -> float:
    """How many instructions of rank 0 are in the books."""
    return sum(series(agent, "perseus_instruction_seconds_count", stage="0").values())


def test_iterations_that_follow_one_another_cost_no_call_more(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    gpu = node.gpus[0]
    agent.plan(make_plan())
    for iteration in range(1, 101):
        trainer.begin(iteration)
        locked(gpu, 810)
        trainer.run(iteration, "F")
        locked(gpu, 1005)
        trainer.run(iteration, "B")
        trainer.end(iteration)
        locked(gpu, 810)
    assert (gpu.calls["set_locked_clocks"], gpu.calls["reset_locked_clocks"]) == (201, 0)
    assert value(agent, "perseus_clock_intermissions_total", stage="0") == 0


def test_what_comes_in_an_intermission_locks_nothing_and_a_new_plan_holds_from_the_next_iteration(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    gpu = node.gpus[0]
    intermit(agent, trainer, gpu)
    calls = dict(gpu.calls)
    trainer.run(1, "FB")
    eventually(lambda: instructions(agent) == 4, "they have come")
    agent.plan(make_plan(2, 2, clock=600))
    eventually(lambda: value(agent, "perseus_plan_generation_accepted", stage="0") == 2, "the plan has come")
    assert gpu.locked_range() is None
    assert gpu.calls["set_locked_clocks"] == calls["set_locked_clocks"]
    trainer.begin(2)
    locked(gpu, 600)
    assert value(agent, "perseus_mismatches_total", stage="0") == 0


def test_a_plan_withdrawn_in_an_intermission_stays_withdrawn(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    gpu = node.gpus[0]
    intermit(agent, trainer, gpu)
    agent.ask(do="withdraw", name=PLAN_NAME)
    train(trainer, 2)
    eventually(lambda: value(agent, "perseus_pipeline_iteration") == 2, "it trains on")
    assert gpu.locked_range() is None


class Served(Hand):
    """A lease in this process whose caretaker looks when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.trainer, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.account = RankAccount()
        self.lease = Lease(KEY, POD, connection, Caretaker(self.controller), self.account)
        self.lease.begin()
        self.lease.offer(make_plan(baseline={**BASELINE, "iterationSeconds": 10.0}))
        self.thread = threading.Thread(target=self.lease.run)
        self.thread.start()

    def iterate(self, iteration: int, seconds_ago: float) -> None:
        """Run an iteration that ended some time ago."""
        tell(self.trainer, BoundaryKind.ITERATION_BEGIN, iteration)
        self.finish(iteration, seconds_ago)

    def finish(self, iteration: int, seconds_ago: float) -> None:
        """Run what follows on its begin."""
        for instruction in (FORWARD, BACKWARD):
            for kind in (BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END):
                tell(self.trainer, kind, iteration, instruction)
        tell(self.trainer, BoundaryKind.ITERATION_END, iteration, seconds_ago=seconds_ago)
        eventually(lambda: self.lease.follower.ended_nanoseconds is not None, "the iteration has ended")

    def look(self) -> int | None:
        """Let the caretaker look; the clock that is locked then."""
        self.lease.upkeep()
        self.controller.work()
        return self.gpu.locked


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.trainer.close()
    made.thread.join()


@pytest.mark.parametrize(("seconds_ago", "clock"), [(0.0, 810), (4.0, 810), (5.5, None)])
def test_half_an_iteration_is_waited_for(served: Served, seconds_ago: float, clock: int | None) -> None:
    served.iterate(1, seconds_ago)
    assert served.look() == clock
    assert served.journal.entries == ({UUID} if clock else set())


def test_where_iterations_take_longer_than_the_plan_says_more_is_waited_for(served: Served) -> None:
    served.account.resume(Unlocked(100.0, 40.0, 2))  # As a sweep's plan, which predicts nothing.
    served.iterate(1, 9.0)
    assert served.look() == 810
    tell(served.trainer, BoundaryKind.ITERATION_END, 1, seconds_ago=11.0)
    eventually(lambda: served.look() is None, "it was waited for")


@pytest.mark.parametrize(
    ("predicted", "measured", "patience"),
    [(0.0, None, 1.0), (0.2, 0.3, 1.0), (4.0, None, 2.0), (4.0, 3.0, 2.0), (1.0, 30.0, 15.0)],
)
def test_it_is_never_less_than_a_second(predicted: float, measured: float | None, patience: float) -> None:
    assert patience_seconds(predicted, measured) == patience


def test_an_intermission_comes_once_however_often_it_is_looked_for(served: Served) -> None:
    served.iterate(1, HOUR)
    for _ in range(3):
        assert served.look() is None
    assert served.gpu.calls.count(None) == served.lease.follower.intermissions == 1


def test_a_reset_that_fails_is_left_to_the_debt(served: Served) -> None:
    served.iterate(1, HOUR)
    eventually(lambda: served.gpu.locked == 810, "the next clock is set")
    served.gpu.refuses = "unknown"
    for _ in range(3):
        served.look()
    assert (served.controller.owes_unlock, served.controller.errors) == (True, {"unknown": 1})
    served.gpu.refuses = ""
    served.controller.pay()
    assert served.gpu.locked is None
    assert served.journal.entries == set()


def test_a_clock_that_somebody_else_set_is_left_alone_in_an_intermission(served: Served) -> None:
    served.iterate(1, 0.0)
    eventually(lambda: served.gpu.locked == 810, "the next clock is set")
    served.controller.yield_to_others(ours_is_gone=False)
    calls = list(served.gpu.calls)
    ended = served.lease.follower.ended_nanoseconds
    tell(served.trainer, BoundaryKind.ITERATION_END, 1, seconds_ago=HOUR)
    eventually(lambda: served.lease.follower.ended_nanoseconds != ended, "the silence is long")
    served.look()
    assert served.gpu.calls == calls
    assert served.journal.entries == {UUID}, "what may be ours is given back with the lease"


def test_an_iteration_that_begins_at_that_moment_keeps_its_clock(served: Served) -> None:
    tell(served.trainer, BoundaryKind.ITERATION_BEGIN, 1)
    for iteration in range(1, 101):
        served.finish(iteration, HOUR)
        looking = threading.Thread(target=served.look)
        looking.start()
        tell(served.trainer, BoundaryKind.ITERATION_BEGIN, iteration + 1)
        eventually(lambda: served.lease.follower.ended_nanoseconds is None, "the next one has begun")
        looking.join()
        eventually(lambda: served.gpu.locked == 810, "its clock is set")
    assert served.lease.follower.mismatches == 0
