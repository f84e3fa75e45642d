"""Invariant 2: nobody is served what is not wholly his, whatever he says; and who attacks disturbs nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from agent_process import AgentProcess, Kubelet, Trainer, eventually, make_plan, uid
from perseus_api.messages import Hello, Verdict
from perseus_simulator.node import SimulatedNode


@pytest.fixture
def stranger(agent: AgentProcess) -> Iterator[Trainer]:
    """A connection that has said nothing yet."""
    connected = Trainer(agent.path)
    yield connected
    connected.close()


def refused(agent: AgentProcess, reason: str) -> None:
    """The refusal is counted under its reason, and there is no lease."""
    counters = agent.counters()
    assert counters["refusals"] == {reason: 1}
    assert counters["leases"] == 0


def test_a_process_of_no_pod(agent: AgentProcess, node: SimulatedNode) -> None:
    agent.is_in_pod(os.getpid(), None)
    nobody = Trainer(agent.path)
    nobody.connection.send(Hello("research", "gpt", node.gpus[0].uuid, 0, 0, 0, os.getpid()).pack())
    # Refused before its hello is read: the kernel may reset the connection before the reason is seen.
    eventually(lambda: agent.counters()["refusals"] == {"unknown_peer": 1}, "the process is refused")
    assert agent.counters()["leases"] == 0
    nobody.close()


def test_a_pod_that_the_api_does_not_know(agent: AgentProcess, node: SimulatedNode) -> None:
    agent.is_in_pod(os.getpid(), uid(9))
    assert Trainer(agent.path).hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, "unknown_pod")


def test_a_pod_without_the_label(agent: AgentProcess, stranger: Trainer, node: SimulatedNode) -> None:
    agent.pod(0, job="")
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, "no_label")


def test_a_forged_job(agent: AgentProcess, stranger: Trainer, node: SimulatedNode) -> None:
    assert stranger.hello(node.gpus[0].uuid, job="other").verdict is Verdict.REFUSED
    refused(agent, "other_job")


@pytest.mark.parametrize(("stage", "pipeline"), [(1, 0), (0, 1), (2, 0), (2**32 - 1, 0)])
def test_a_forged_rank(agent: AgentProcess, stranger: Trainer, node: SimulatedNode, stage: int, pipeline: int) -> None:
    assert stranger.hello(node.gpus[0].uuid, stage=stage, pipeline=pipeline).verdict is Verdict.REFUSED
    refused(agent, "other_rank")


@pytest.mark.parametrize("index", [1, 2])
def test_a_gpu_of_somebody_else(agent: AgentProcess, stranger: Trainer, node: SimulatedNode, index: int) -> None:
    assert stranger.hello(node.gpus[index].uuid).verdict is Verdict.REFUSED
    refused(agent, "foreign_gpu")


def test_a_shared_gpu(agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode) -> None:
    kubelet.devices[0] = ("gpt-0", "nvidia.com/gpu", f"{node.gpus[0].uuid}::3")
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, "shared_gpu")


def test_a_mig_slice(agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode) -> None:
    kubelet.devices[0] = ("gpt-0", "nvidia.com/mig-1g.10gb", "MIG-0a0a0a0a-0000-0000-0000-000000000000")
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, "shared_gpu")


def test_a_gpu_in_mig_mode(agent: AgentProcess, stranger: Trainer, node: SimulatedNode) -> None:
    node.gpus[0].inject(mig=True)
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, "mig")


def test_a_gpu_that_two_pods_claim(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode
) -> None:
    kubelet.devices.append(("gpt-1", "nvidia.com/gpu", node.gpus[0].uuid))
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, "claimed_twice")


def test_a_finished_pods_claim_is_no_claim(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode
) -> None:
    kubelet.devices.append(("gpt-7", "nvidia.com/gpu", node.gpus[0].uuid))
    agent.pod(7, phase="Succeeded")
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"\0" * 400,
        Hello("research", "gpt", "", 0, 0, 0, 1).pack()[:-1],
        Hello("a", "b", "", 0, 0, 0, 1).pack() + b"x",
    ],
)
def test_half_and_strange_hellos(agent: AgentProcess, stranger: Trainer, packet: bytes) -> None:
    stranger.connection.send(packet)
    eventually(lambda: agent.counters()["refusals"] == {"bad_hello": 1}, "the hello is refused")


@pytest.mark.parametrize("packet", [b"x", b"\0" * 24, b"\xff" * 24, b"\1" * 10_000])
def test_a_bad_boundary_ends_the_lease_and_frees_the_clock(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode, packet: bytes
) -> None:
    agent.plan(make_plan())
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    trainer.connection.send(packet)
    eventually(lambda: agent.counters()["leases"] == 0, "the lease has ended")
    assert node.gpus[0].locked_range() is None


def test_a_thousand_connections_leave_a_served_rank_alone(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan())
    crowd = []
    for _ in range(1000):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(agent.path))
        crowd.append(connection)
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the served rank's clock is locked")
    trainer.run(1, "F")
    eventually(lambda: node.gpus[0].locked_range() == (1005, 1005), "its next clock is locked")
    assert agent.counters()["refusals"].get("too_many", 0) >= 1000 - 256 - 1
    for connection in crowd:
        connection.close()
    eventually(lambda: agent.counters()["leases"] == 1, "the served rank is served")


def test_a_flood_of_one_rank_leaves_the_other_alone(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    agent.is_in_pod(os.getpid(), uid(1))
    neighbour = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    neighbour.begin(1)
    with contextlib.suppress(BlockingIOError, TimeoutError):
        for iteration in range(1, 3000):
            trainer.begin(iteration)
            trainer.run(iteration, "FB")
    neighbour.run(1, "F")
    eventually(lambda: node.gpus[1].locked_range() == (1005, 1005), "the neighbour's next clock is locked")
    neighbour.close()
