"""Whatever a trainer's process sends, the agent lives on, its neighbour's clock stays and its own is given back."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from agent_process import RELEASE_SECONDS, AgentProcess, Trainer, eventually, make_plan, uid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.messages import BOUNDARY_BYTES, HELLO_BYTES, Boundary, BoundaryKind, Hello
from perseus_simulator.node import SimulatedNode

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers32 = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
numbers64 = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
texts = st.one_of(st.sampled_from(["research", "gpt", ""]), st.text(max_size=15))


def mutated(packets: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A good packet with bytes changed, or a piece cut off or put on."""

    def change(packet: bytes, places: list[tuple[int, int]], cut: int, more: bytes) -> bytes:
        changed = bytearray(packet)
        for place, value in places:
            changed[place % len(changed)] = value
        return bytes(changed[: len(changed) - cut]) + more

    places = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4)
    return st.builds(change, packets, places, st.integers(0, 8), st.binary(max_size=8))


hellos = st.builds(lambda *given: Hello(*given).pack(), texts, texts, texts, numbers32, numbers32, numbers32, numbers32)
instructions = st.builds(
    lambda kind, iteration, moment, instruction, microbatch: Boundary(
        kind, iteration, moment, instruction, microbatch
    ).pack(),
    st.sampled_from([BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END]),
    numbers64,
    numbers64,
    st.sampled_from(Instruction),
    numbers32,
)
iterations = st.builds(
    lambda kind, iteration, moment: Boundary(kind, iteration, moment).pack(),
    st.sampled_from([BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END, BoundaryKind.ITERATION_BROKEN]),
    numbers64,
    numbers64,
)
packets = st.one_of(
    instructions,
    iterations,
    mutated(instructions),
    mutated(iterations),
    mutated(hellos),
    st.binary(max_size=2 * HELLO_BYTES),
    st.binary(min_size=BOUNDARY_BYTES, max_size=BOUNDARY_BYTES),
    st.just(b"\0" * 100_000),
)


@pytest.fixture
def neighbour(agent: AgentProcess, node: SimulatedNode) -> Iterator[Trainer]:
    """Rank 1, whose clock is locked; this process is in rank 0's pod again afterwards."""
    agent.plan(make_plan(first=0))
    agent.is_in_pod(os.getpid(), uid(1))
    served = Trainer(agent.path).served(node.gpus[1].uuid, stage=1)
    served.begin(0)
    eventually(lambda: node.gpus[1].locked_range() == (810, 810), "the neighbour's clock is locked")
    agent.is_in_pod(os.getpid(), uid(0))
    yield served
    served.close()


def all_is_well(agent: AgentProcess, node: SimulatedNode) -> None:
    """The stranger's clock is free, the neighbour's as before, and the agent answers."""
    eventually(lambda: node.gpus[0].locked_range() is None, "the clock is given back", RELEASE_SECONDS)
    assert node.gpus[1].locked_range() == (810, 810)
    counters = agent.counters()
    assert counters["leases"] in (1, 2)  # the stranger's may be about to end


def send_all(connection: socket.socket, sent: list[bytes]) -> None:
    """Send until the agent hangs up."""
    with contextlib.suppress(OSError):
        for packet in sent:
            connection.send(packet, socket.MSG_DONTWAIT)


@SETTINGS
@given(sent=st.lists(packets, max_size=6))
def test_first_packets(agent: AgentProcess, node: SimulatedNode, neighbour: Trainer, sent: list[bytes]) -> None:
    stranger = Trainer(agent.path)
    send_all(stranger.connection, sent)
    stranger.close()
    all_is_well(agent, node)


@SETTINGS
@given(sent=st.lists(packets, max_size=12), starts=st.booleans())
def test_packets_of_a_served_rank(
    agent: AgentProcess, node: SimulatedNode, neighbour: Trainer, sent: list[bytes], starts: bool
) -> None:
    stranger = Trainer(agent.path).served(node.gpus[0].uuid)
    if starts:
        stranger.begin(0)
        eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    send_all(stranger.connection, sent)
    stranger.close()
    all_is_well(agent, node)


ways_to_end: list[Callable[[socket.socket], object]] = [
    lambda connection: connection.shutdown(socket.SHUT_WR),
    lambda connection: connection.shutdown(socket.SHUT_RD),
    lambda connection: connection.shutdown(socket.SHUT_RDWR),
    lambda connection: connection.send(b""),
    lambda connection: socket.send_fds(connection, [b"x" * BOUNDARY_BYTES], [0, 1, 2]),
]


@pytest.mark.parametrize("end", ways_to_end)
def test_odd_ways_to_end(
    agent: AgentProcess, node: SimulatedNode, neighbour: Trainer, end: Callable[[socket.socket], object]
) -> None:
    stranger = Trainer(agent.path).served(node.gpus[0].uuid)
    stranger.begin(0)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    end(stranger.connection)
    stranger.close()
    all_is_well(agent, node)


def test_a_served_rank_that_says_nothing_any_more_keeps_its_lease_and_nobody_waits(
    agent: AgentProcess, node: SimulatedNode, neighbour: Trainer
) -> None:
    silent = Trainer(agent.path).served(node.gpus[0].uuid)
    silent.begin(0)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    for _ in range(20):  # and twenty that never say who they are
        Trainer(agent.path)
    neighbour.run(0, "F")
    eventually(lambda: node.gpus[1].locked_range() == (1005, 1005), "the neighbour's next clock is locked")
    time.sleep(0.1)
    assert node.gpus[0].locked_range() == (810, 810)
    silent.close()
    eventually(lambda: node.gpus[0].locked_range() is None, "the clock is given back", RELEASE_SECONDS)
