"""Invariant 1: whoever goes away, by whatever death, no clock stays locked for longer than the promise."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_process import (
    PLAN_NAME,
    RELEASE_SECONDS,
    AgentProcess,
    Kubelet,
    Trainer,
    eventually,
    make_plan,
    uid,
    waits_for_lock,
)
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Hello
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment


def locked(node: SimulatedNode, clock: int = 810) -> None:
    """Wait until rank 0's clock is locked."""
    eventually(lambda: node.gpus[0].locked_range() == (clock, clock), f"the clock is locked at {clock} MHz")


def free(node: SimulatedNode) -> None:
    """Wait until every GPU is unlocked, for as long as is promised."""
    eventually(lambda: not any(gpu.locked_range() for gpu in node.gpus), "every GPU is free", RELEASE_SECONDS)


def test_the_plan_is_followed_and_the_journal_knows(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    assert agent.journalled == [f"{node.gpus[0].uuid}.lock.json"]
    trainer.run(1, "F")
    locked(node, 1005)
    trainer.run(1, "B")
    locked(node, 810)
    assert node.gpus[1].locked_range() is None


def test_a_trainer_that_hangs_up(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    trainer.close()
    free(node)
    eventually(lambda: agent.journalled == [], "the journal is empty")


def test_a_killed_trainer(agent: AgentProcess, node: SimulatedNode, trainer_process: Callable[[], int]) -> None:
    agent.plan(make_plan())
    pid = trainer_process()
    locked(node)
    os.kill(pid, signal.SIGKILL)
    free(node)


def test_a_withdrawn_plan(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    agent.ask(do="withdraw", name=PLAN_NAME)
    free(node)
    trainer.run(1, "FB")
    agent.plan(make_plan(2, 3))
    # A whole iteration: whenever the plan arrives in it, it matches.
    trainer.begin(2)
    trainer.run(2, "FB")
    trainer.begin(3)
    locked(node)


def test_a_deleted_pod_whose_process_lives_on(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    agent.ask(do="gone", uid=uid(0))
    free(node)
    assert f'gpu="{node.gpus[0].uuid}",iteration' not in agent.counters()["metrics"]
    # Its last iterations must still be scraped once; of what it is now nothing is said any more.
    told = {line.split("{")[0] for line in agent.counters()["metrics"].splitlines() if 'pod="gpt-0"' in line}
    assert "perseus_iterations_total" in told
    assert not told & {"perseus_rank_state", "perseus_gpu_clock_requested_hertz", "perseus_pipeline_iteration"}


@pytest.mark.parametrize("how", ["deleted", "finished"])
def test_a_pod_that_goes_while_its_trainer_is_admitted(
    agent: AgentProcess, kubelet: Kubelet, node: SimulatedNode, how: str
) -> None:
    """Whoever hears of the pod's end finds no lease to end; the lease that comes after must not live."""
    agent.plan(make_plan())
    kubelet.gate.clear()
    connecting = Trainer(agent.path)
    connecting.connection.send(Hello("research", "gpt", node.gpus[0].uuid, 0, 0, 0, os.getpid()).pack())
    assert kubelet.asked.wait(10)
    if how == "deleted":
        agent.ask(do="gone", uid=uid(0))
    else:
        agent.pod(0, phase="Failed")
    kubelet.gate.set()
    with contextlib.suppress(OSError):
        connecting.begin(1)
        connecting.run(1, "F")
    eventually(lambda: agent.counters()["leases"] == 0 and bool(hung_up(connecting)), "the lease has ended")
    assert node.gpus[0].locked_range() is None
    assert node.gpus[0].calls["set_locked_clocks"] == 0


def hung_up(trainer: Trainer) -> bool:
    """Whether the agent has closed the connection."""
    try:
        while trainer.connection.recv(MAXIMUM_MESSAGE_BYTES, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_an_agent_that_is_told_to_stop(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    agent.stop()
    assert node.gpus[0].locked_range() is None
    assert agent.journalled == []


def test_a_killed_agent_leaves_the_lock_to_its_next_start(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    agent.kill()
    # The lock outlives the process, as on a real GPU: without this the test would prove nothing.
    assert node.gpus[0].locked_range() == (810, 810)
    agent.start()
    assert node.gpus[0].locked_range() is None
    assert agent.journalled == []


def test_a_killed_agent_leaves_the_lock_to_the_watchdog(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    environment = {**simulator_environment(node), "PERSEUS_JOURNAL_FOLDER": str(agent.folder / "journal")}
    watchdog = subprocess.Popen([sys.executable, "-m", "perseus_daemonset.main", "watchdog"], env=environment)
    try:
        agent.plan(make_plan())
        for iteration in range(1, 3):
            trainer.begin(iteration)
            trainer.run(iteration, "FB")
            trainer.end(iteration)
        trainer.begin(3)
        locked(node)
        # Only who has started can come to help: on a busy machine Python's start alone takes seconds.
        eventually(lambda: waits_for_lock(watchdog.pid), "the watchdog waits in the kernel", 60)
        agent.kill()
        free(node)
        eventually(lambda: agent.journalled == [], "the journal is empty")
        # It waits again: the next agent is neither kept out nor robbed of its locks.
        agent.start()
        agent.pod(0)
        agent.plan(make_plan())
        again = Trainer(agent.path).served(node.gpus[0].uuid)
        again.begin(1)
        locked(node)
        time.sleep(1.5)
        assert node.gpus[0].locked_range() == (810, 810)
        agent.kill()
        free(node)
        again.close()
    finally:
        watchdog.kill()
        watchdog.wait()


def test_a_lost_gpu_costs_its_neighbour_nothing(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    agent.is_in_pod(os.getpid(), uid(1))
    neighbour = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    node.gpus[0].inject(lost=True)
    trainer.begin(1)
    neighbour.begin(1)
    eventually(lambda: node.gpus[1].locked_range() == (810, 810), "the neighbour's clock is locked")
    assert 'error="gpu_is_lost"' in agent.counters()["metrics"]
    neighbour.close()
    free(node)


def test_a_clock_that_could_not_be_given_back_is_given_back_when_the_gpu_lets_it(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    locked(node)
    node.gpus[0].inject(unknown=True)
    trainer.close()
    eventually(lambda: 'error="unknown"' in agent.counters()["metrics"], "the failed call is counted")
    assert node.gpus[0].locked_range() == (810, 810)
    node.gpus[0].clear()
    free(node)


def test_a_trainer_astray_costs_no_more_calls_than_the_rate_allows(
    node: SimulatedNode, kubelet: Kubelet, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path, simulator_environment(node), changes_per_second=10)
    agent.start()
    agent.pod(0)
    agent.plan(make_plan())
    served = Trainer(agent.path).served(node.gpus[0].uuid)
    for iteration in range(1, 200):
        served.begin(iteration)
        time.sleep(0.005)
        served.run(iteration, "R")
        time.sleep(0.005)
    changes = node.gpus[0].calls["set_locked_clocks"]
    served.close()
    free(node)
    agent.kill()
    assert changes <= 10 + 10 * 3
