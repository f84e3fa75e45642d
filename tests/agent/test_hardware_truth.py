"""What the device does with a request, and what the agent makes of it: held or not and why, whose lock, which GPU.

Kernels really run on the simulated device while the trainer's instruction is open, so that clocks are read under load.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from agent_process import PLAN_NAME, RELEASE_SECONDS, AgentProcess, Trainer, eventually, make_plan, uid
from perseus_api.instructions import Instruction
from perseus_api.messages import BoundaryKind
from perseus_simulator.node import KernelClient, SimulatedNode
from test_metrics import series, value

LONG = 30.0
SLOW = 8.0  # of a device that takes its time for each call


@pytest.fixture
def busy(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> Iterator[None]:
    """Rank 0 in the middle of a long forward, locked at 810 MHz, with kernels running on its GPU."""
    agent.plan(make_plan())
    trainer.begin(1)
    trainer._send(BoundaryKind.INSTRUCTION_BEGIN, 1, Instruction.FORWARD)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    stopped = threading.Event()

    def work() -> None:
        with KernelClient(node, node.gpus[0].uuid) as client:
            while not stopped.is_set():
                client.run(0, Instruction.FORWARD)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stopped.set()
    thread.join()


def state(agent: AgentProcess) -> str:
    """The state of rank 0 as the metrics say it, with its reason."""
    (labels,) = series(agent, "perseus_rank_state", stage="0")
    found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    return f"{found['state']} {found['reason']}".strip()


def sees(agent: AgentProcess, wanted: str) -> Callable[[], bool]:
    """Whether rank 0 is in a state."""
    return lambda: state(agent) == wanted


def test_a_clock_that_is_held_is_watched_and_nothing_is_said(agent: AgentProcess, busy: None) -> None:
    eventually(lambda: value(agent, "perseus_clock_watched_seconds_total", stage="0") > 0.5, "it is watched", LONG)
    assert series(agent, "perseus_clock_not_held_seconds_total") == {}
    assert state(agent) == "following"


def test_a_power_cap_is_named_and_its_time_counted_and_the_clock_stays_asked_for(
    agent: AgentProcess, busy: None, node: SimulatedNode
) -> None:
    node.gpus[0].inject(power_cap_watts=120)
    eventually(sees(agent, "not_held sw_power_cap"), "the cap is seen", LONG)
    eventually(
        lambda: value(agent, "perseus_clock_not_held_seconds_total", reason="sw_power_cap") > 0.3, "it counts", LONG
    )
    assert value(agent, "perseus_gpu_clock_requested_hertz", stage="0") == 810e6
    assert value(agent, "perseus_gpu_clock_held_hertz", stage="0") < 810e6
    node.gpus[0].clear()
    eventually(sees(agent, "following"), "the clock is held again", LONG)


@pytest.mark.parametrize("lock", [(1200, 1200), None])
def test_somebody_elses_lock_or_reset_is_not_fought_over(
    agent: AgentProcess, busy: None, trainer: Trainer, node: SimulatedNode, lock: tuple[int, int] | None
) -> None:
    gpu = node.gpus[0]
    eventually(lambda: value(agent, "perseus_clock_watched_seconds_total", stage="0") > 0, "it is watched", LONG)
    if lock:
        gpu.foreign_lock(*lock)
    else:
        gpu.foreign_reset()
    eventually(sees(agent, "interference"), "the other one is seen", LONG)
    calls = dict(gpu.calls)
    trainer._send(BoundaryKind.INSTRUCTION_END, 1, Instruction.FORWARD)
    trainer.run(1, "B")
    for iteration in range(2, 5):
        trainer.begin(iteration)
        trainer.run(iteration, "FB")
    trainer.close()
    eventually(lambda: agent.counters()["leases"] == 0, "the lease has ended")
    assert gpu.locked_range() == lock
    assert gpu.calls["set_locked_clocks"] == calls["set_locked_clocks"]
    assert gpu.calls["reset_locked_clocks"] == calls["reset_locked_clocks"]
    assert agent.journalled == []


def test_somebody_elses_lower_lock_is_left_alone_and_ours_given_back_with_the_lease(
    agent: AgentProcess, busy: None, trainer: Trainer, node: SimulatedNode
) -> None:
    gpu = node.gpus[0]
    eventually(lambda: value(agent, "perseus_clock_watched_seconds_total", stage="0") > 0, "it is watched", LONG)
    gpu.foreign_lock(510, 510)
    eventually(sees(agent, "interference"), "the other one is seen", LONG)
    calls = dict(gpu.calls)
    trainer._send(BoundaryKind.INSTRUCTION_END, 1, Instruction.FORWARD)
    trainer.run(1, "B")
    trainer.begin(2)
    eventually(lambda: value(agent, "perseus_pipeline_iteration") == 2, "it trains on")
    assert gpu.locked_range() == (510, 510)
    assert gpu.calls["set_locked_clocks"] == calls["set_locked_clocks"]
    trainer.close()
    eventually(lambda: gpu.locked_range() is None, "what may be ours is given back", RELEASE_SECONDS)


@pytest.mark.parametrize("fault", ["no_permission", "not_supported", "unknown"])
def test_a_device_that_refuses_is_named_and_training_runs_unlocked(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode, fault: str
) -> None:
    node.gpus[0].inject(**{fault: True})
    agent.plan(make_plan())
    trainer.begin(1)
    eventually(sees(agent, f"refused {fault}"), "the refusal is told", LONG)
    assert node.gpus[0].locked_range() is None
    trainer.run(1, "FB")
    trainer.end(1)
    assert node.gpus[0].calls["refused"] <= 4, "a device that refuses is left alone for a while"


def test_a_mismatch_is_explained_in_the_report(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    trainer.run(1, "B")
    eventually(sees(agent, "mismatch order"), "the mismatch is told")
    (rank,) = agent.counters()["report"]["ranks"]
    assert rank["explanation"].startswith(
        "iteration 1, instruction 0: backward came where forward follows in the plan; the clock is free"
    )
    for iteration in (2, 3):
        trainer.begin(iteration)
        trainer.run(iteration, "FB")
    eventually(sees(agent, "following"), "it is over")


@pytest.mark.parametrize(
    ("fault", "code", "cured"),
    [("no_permission", "no_permission", False), ("lost", "gpu_is_lost", False), ("unknown", "unknown", True)],
)
def test_liveness_fails_where_only_a_restart_helps(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode, fault: str, code: str, cured: bool
) -> None:
    agent.plan(make_plan())
    node.gpus[0].inject(**{fault: True})
    trainer.begin(1)
    eventually(sees(agent, f"refused {code}"), "the fault is told", LONG)
    assert bool(agent.counters()["healthy"]) == cured


def test_a_slow_device_delays_no_other_gpu_no_plan_and_no_page(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    agent.is_in_pod(os.getpid(), uid(1))
    neighbour = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "both are locked")
    node.gpus[0].inject(call_latency_seconds=SLOW)
    trainer.run(1, "F")
    begin = time.monotonic()
    neighbour.begin(1)
    eventually(lambda: node.gpus[1].locked_range() == (810, 810), "the neighbour is locked", SLOW)
    agent.counters()
    agent.ask(do="withdraw", name=PLAN_NAME)
    eventually(lambda: node.gpus[1].locked_range() is None, "the neighbour's plan is withdrawn", SLOW)
    assert time.monotonic() - begin < SLOW
    node.gpus[0].clear()
    eventually(lambda: node.gpus[0].locked_range() is None, "the slow one follows", 4 * SLOW)
    neighbour.close()


def test_a_lost_gpu_is_told_and_its_neighbour_is_served_on(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    agent.is_in_pod(os.getpid(), uid(1))
    neighbour = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    trainer.begin(1)
    neighbour.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "it is locked")
    node.gpus[0].inject(lost=True)
    eventually(sees(agent, "refused gpu_is_lost"), "the loss is told", LONG)
    neighbour.run(1, "F")
    eventually(lambda: node.gpus[1].locked_range() == (1005, 1005), "the neighbour is served on")
    neighbour.close()
    node.gpus[0].clear()
    trainer.close()
    eventually(lambda: node.gpus[0].locked_range() is None, "what came back is free", RELEASE_SECONDS)
