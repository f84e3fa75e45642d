"""Invariant 2: nobody is served what is not wholly his, whatever he says; and who attacks disturbs nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentProcess, Kubelet, Trainer, eventually, make_plan, uid
from perseus_api.messages import Hello, Verdict
from perseus_daemonset.server import Server
from perseus_simulator.node import KernelClient, SimulatedNode
from test_metrics import value


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
    # Refused before its hello is read: the connection may be closed before the hello is sent or the reason is seen.
    with contextlib.suppress(OSError):
        nobody.connection.send(Hello("research", "gpt", node.gpus[0].uuid, 0, 0, 0, os.getpid()).pack())
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


@pytest.mark.parametrize(
    ("resource", "device", "reason"),
    [
        ("nvidia.com/gpu", "UUID::3", "shared_gpu"),
        ("nvidia.com/gpu.shared", "UUID", "shared_gpu"),
        ("nvidia.com/gpu", "0::1", "shared_gpu"),
        ("nvidia.com/gpu", "nvidia0/vgpu1", "shared_gpu"),
        ("nvidia.com/mig-1g.10gb", "MIG-0a0a0a0a-0000-0000-0000-000000000000", "mig"),
        ("nvidia.com/mig-1g.10gb", "MIG-UUID/1/0", "mig"),
        ("nvidia.com/gpu", "0:1", "mig"),
        ("nvidia.com/gpu", "nvidia0/gi2", "mig"),
        ("nvidia.com/gpu", "something else", "unknown_device"),
        ("nvidia.com/gpu", "9", "unknown_device"),
    ],
)
def test_a_part_of_a_gpu(
    agent: AgentProcess,
    kubelet: Kubelet,
    stranger: Trainer,
    node: SimulatedNode,
    resource: str,
    device: str,
    reason: str,
) -> None:
    kubelet.devices[0] = ("gpt-0", resource, device.replace("UUID", node.gpus[0].uuid))
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, reason)


@pytest.mark.parametrize("device", ["0", "nvidia0"])
def test_a_whole_gpu_by_index_or_device_node(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode, device: str
) -> None:
    kubelet.devices[0] = ("gpt-0", "nvidia.com/gpu", device)
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED


def test_a_network_card_of_the_same_vendor_beside_the_gpu(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode
) -> None:
    kubelet.devices.append(("gpt-0", "nvidia.com/hostdev", "0000:3b:00.2"))
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED


DRIVER = "gpu.nvidia.com"


def publish(agent: AgentProcess, **kinds: tuple[str, str]) -> None:
    """Let the driver publish devices: name = (UUID, type)."""
    devices = [
        {"name": name, "attributes": {"uuid": {"string": uuid}, f"{DRIVER}/type": {"string": kind}}}
        for name, (uuid, kind) in kinds.items()
    ]
    slices = [{"spec": {"driver": DRIVER, "pool": {"name": "node-1"}, "devices": devices}}]
    (agent.folder / "slices.json").write_text(json.dumps(slices))


def test_a_dynamic_device_that_is_no_gpu_beside_the_gpu(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode
) -> None:
    kubelet.dynamic = [("gpt-0", "dra.net", "fabric", "port-3", None)]
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED


def test_a_gpu_by_dynamic_allocation(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode
) -> None:
    publish(agent, gpu0=(node.gpus[0].uuid, "gpu"), gpu1=(node.gpus[1].uuid, "gpu"))
    kubelet.devices.clear()
    kubelet.dynamic = [("gpt-0", DRIVER, "node-1", "gpu0", None), ("gpt-1", DRIVER, "node-1", "gpu1", None)]
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED


@pytest.mark.parametrize(
    ("claim", "kind", "reason"),
    [
        (("gpt-0", DRIVER, "node-1", "gpu0", None), "mig", "mig"),
        (("gpt-0", DRIVER, "node-1", "gpu0", "share-1"), "gpu", "shared_gpu"),
        (("gpt-0", DRIVER, "node-1", "gpu7", None), "gpu", "unknown_device"),
        (("gpt-0", DRIVER, "other-pool", "gpu0", None), "gpu", "unknown_device"),
    ],
)
def test_a_dynamic_claim_that_is_no_whole_gpu(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode,
    claim: tuple[str, str, str, str, str | None], kind: str, reason: str,
) -> None:  # fmt: skip
    publish(agent, gpu0=(node.gpus[0].uuid, kind))
    kubelet.devices.clear()
    kubelet.dynamic = [claim]
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, reason)


@pytest.mark.parametrize("second", ["dynamic", "plugin", "replica"])
def test_a_gpu_that_another_pod_claims_too(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode, second: str
) -> None:
    publish(agent, gpu0=(node.gpus[0].uuid, "gpu"))
    uuid = node.gpus[0].uuid
    if second == "dynamic":
        kubelet.dynamic = [("gpt-1", DRIVER, "node-1", "gpu0", None)]
    else:
        kubelet.devices.append(("gpt-1", "nvidia.com/gpu", uuid if second == "plugin" else f"{uuid}::1"))
    assert stranger.hello(uuid).verdict is Verdict.REFUSED
    refused(agent, "claimed_twice")
    # Neither is served: the other one owns two things, one of which is ours.
    agent.is_in_pod(os.getpid(), uid(1))
    assert Trainer(agent.path).hello(uuid, stage=1).verdict is Verdict.REFUSED


def test_a_kubelet_that_restarts_is_asked_again(
    agent: AgentProcess, kubelet: Kubelet, stranger: Trainer, node: SimulatedNode
) -> None:
    first = Trainer(agent.path).served(node.gpus[0].uuid)
    first.close()
    kubelet.stop()
    (agent.folder / "kubelet.sock").unlink(missing_ok=True)
    again = Kubelet(agent.folder)
    again.devices = [("gpt-0", "nvidia.com/gpu", node.gpus[0].uuid)]
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED
    again.stop()


def test_a_pod_with_two_gpus_has_two_ranks(agent: AgentProcess, kubelet: Kubelet, node: SimulatedNode) -> None:
    kubelet.devices = [("gpt-0", "nvidia.com/gpu", node.gpus[index].uuid) for index in range(2)]
    zero, one = Trainer(agent.path), Trainer(agent.path)
    assert zero.hello(node.gpus[0].uuid, stage=0).verdict is Verdict.SERVED
    assert one.hello(node.gpus[1].uuid, stage=1).verdict is Verdict.SERVED
    assert Trainer(agent.path).hello("", stage=1).reason == "the pod owns 2 GPUs and its process names none of them"
    assert Trainer(agent.path).hello(node.gpus[1].uuid, pipeline=1).reason.endswith("is ranks 0 to 1, not 2")
    zero.close()
    one.close()


@pytest.mark.parametrize("sharing", ["mig", "vgpu", "mps"])
def test_a_gpu_that_the_driver_says_is_shared(
    agent: AgentProcess, stranger: Trainer, node: SimulatedNode, sharing: str
) -> None:
    node.gpus[0].inject(**{sharing: True})
    with KernelClient(node, node.gpus[0].uuid):
        assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.REFUSED
    refused(agent, sharing)


def test_a_gpu_that_knows_no_mig_is_whole(agent: AgentProcess, stranger: Trainer, node: SimulatedNode) -> None:
    node.gpus[0].inject(no_mig=True)
    assert stranger.hello(node.gpus[0].uuid).verdict is Verdict.SERVED


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


def test_what_a_peer_writes_never_looks_like_a_line_of_the_log(
    agent: AgentProcess, stranger: Trainer, node: SimulatedNode
) -> None:
    answer = stranger.hello("GPU-0\n2026-01-01 INFO all is well")
    assert answer.reason.isprintable()
    refused(agent, "foreign_gpu")


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


def test_a_socket_that_cannot_be_removed_does_not_keep_the_agent_from_its_end(tmp_path: Path) -> None:
    server = Server(tmp_path / "run" / "agent.sock", None, None, None, None)  # type: ignore[arg-type]
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").write_text("no folder any more")
    server.close()


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
    # On a busy machine some get a place after another, which has been silent for too long.
    eventually(lambda: sum(agent.counters()["refusals"].values()) >= 960, "all but a few are refused", 60)
    assert agent.counters()["refusals"]["too_many_of_pod"] > 0, "one pod has no more places than its own"
    # Another pod's trainer comes while the crowd is there.
    agent.is_in_pod(os.getpid(), uid(1))
    newcomer = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    newcomer.close()
    for connection in crowd:
        connection.close()
    eventually(lambda: agent.counters()["leases"] == 1, "the served rank is served")


def test_a_flood_of_one_rank_leaves_the_other_alone(agent: AgentProcess, trainer: Trainer, node: SimulatedNode) -> None:
    agent.plan(make_plan())
    agent.is_in_pod(os.getpid(), uid(1))
    neighbour = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    neighbour.begin(1)
    # A busy machine may be too slow for the real bound: what is tried is what happens beyond one.
    agent.ask(do="bound", messages_per_second=100.0)
    with contextlib.suppress(BlockingIOError, TimeoutError):
        for iteration in range(1, 300):
            trainer.begin(iteration)
            trainer.run(iteration, "FB")
    neighbour.run(1, "F")
    eventually(lambda: node.gpus[1].locked_range() == (1005, 1005), "the neighbour's next clock is locked")
    assert value(agent, "perseus_messages_throttled_total", stage="0") > 0
    assert value(agent, "perseus_messages_throttled_total", stage="1") == 0
    neighbour.close()
