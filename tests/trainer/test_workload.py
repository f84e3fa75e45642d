"""The simulated training job as real processes: the schedules' orders, what waits for what, how all end together."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_side import DEADLINE_SECONDS, AgentSide, read
from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind, Verdict, Welcome
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import SPLIT, WHOLE, NodeFactory, example_profile, simulator_environment
from perseus_simulator.workload.main import EXIT_PEER_LOST, EXIT_TERMINATED
from perseus_simulator.workload.placement import ENV_ORDERS, ENV_PEER_ADDRESSES

STAGES, PIPELINES, MICROBATCHES, RANKS = 2, 2, 3, 4
START_SECONDS = 45.0  # Python's start on a busy machine
ORDERS = {
    "1F1B": {0: "F0 F1 B0 F2 B1 B2", 1: "F0 B0 F1 B1 F2 B2"},
    "GPipe": {0: "F0 F1 F2 B0 B1 B2", 1: "F0 F1 F2 B0 B1 B2"},
}
# Two chunks on each rank: instruction, chunk and microbatch, such as F1.0.
CHUNKED_ORDERS = {
    "Interleaved1F1B": {
        0: "F0.0 F0.1 F1.0 F1.1 B1.0 B1.1 B0.0 B0.1",
        1: "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 B0.0 B0.1",
    },
    "ZBV": {
        0: "F0.0 F0.1 F1.0 I1.0 W1.0 F1.1 I1.1 W1.1 I0.0 W0.0 I0.1 W0.1",
        1: "F0.0 F1.0 F0.1 F1.1 I1.0 W1.0 I0.0 W0.0 I1.1 W1.1 I0.1 W0.1",
    },
}

Rank = subprocess.Popen[str]


class Job:
    """The ranks of one job, each a process, on the GPUs of one simulated node."""

    def __init__(self, node: SimulatedNode, folder: Path) -> None:
        self.node = node
        self._folder = folder
        self.ports = free_ports(RANKS)
        self.started: list[Rank] = []

    def start(self, rank: int, iterations: int = 0, **changes: str) -> Rank:
        environment = {
            **simulator_environment(self.node),
            names.ENV_JOB: "gpt",
            names.ENV_NAMESPACE: "research",
            names.ENV_RANK: str(rank),
            names.ENV_STAGES: str(STAGES),
            names.ENV_PIPELINES: str(PIPELINES),
            names.ENV_MICROBATCHES: str(MICROBATCHES),
            names.ENV_VISIBLE_DEVICES: self.node.gpus[rank].uuid,
            ENV_PEER_ADDRESSES: ",".join(f"127.0.0.1:{port}" for port in self.ports),
            **changes,
        }
        command = [sys.executable, "-m", "perseus_simulator.main", "train", "--iterations", str(iterations)]
        process = subprocess.Popen(
            command, env=environment, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def start_all(self, iterations: int = 0, **changes: str) -> list[Rank]:
        return [self.start(rank, iterations, **changes) for rank in range(RANKS)]

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in held]


def ends(rank: Rank) -> tuple[int, str, str]:
    out, err = rank.communicate(timeout=START_SECONDS)
    return rank.returncode, out, err


def reach(rank: Rank, text: str) -> None:
    """Wait for a line of a rank; its end fails the test."""
    assert rank.stdout is not None
    for line in rank.stdout:
        if text in line:
            return
    pytest.fail(f"the rank ended before it said {text!r}")


@pytest.fixture
def job(simulated_node: NodeFactory, tmp_path: Path) -> Iterator[Job]:
    made = Job(simulated_node(gpus=RANKS, time_scale=5.0), tmp_path)
    yield made
    made.end()


def boundaries(connection: socket.socket) -> Iterator[Boundary]:
    while (boundary := read(connection)) is not None:
        yield boundary


@pytest.mark.parametrize("schedule", ["1F1B", "GPipe"])
def test_all_ranks_follow_the_schedule_and_wait_for_what_they_need(
    schedule: str, job: Job, agent_side: AgentSide
) -> None:
    iterations = 3
    ranks = job.start_all(iterations, **{names.ENV_SCHEDULE: schedule, names.ENV_SOCKET: str(agent_side.path)})
    leases = []
    for _ in ranks:
        connection, hello = agent_side.accept()
        connection.settimeout(START_SECONDS)
        connection.send(Welcome(Verdict.SERVED).pack())
        leases.append((hello, connection))
    told = {(hello.pipeline, hello.stage): list(boundaries(connection)) for hello, connection in leases}
    assert [ends(rank)[0] for rank in ranks] == [0] * RANKS
    assert sorted(told) == [(0, 0), (0, 1), (1, 0), (1, 1)]

    last = iterations - 1  # The first may have begun before the agent welcomed the rank.
    instants: dict[tuple[int, int, BoundaryKind, str], int] = {}
    for (pipeline, stage), seen in told.items():
        order = []
        for each in seen:
            if each.iteration == last and each.instruction is not None:
                label = f"{each.instruction.code}{each.microbatch}"
                instants[pipeline, stage, each.kind, label] = each.time_nanoseconds
                order += [label] if each.kind is BoundaryKind.INSTRUCTION_BEGIN else []
        assert " ".join(order) == ORDERS[schedule][stage]
        assert seen[-1].kind is BoundaryKind.ITERATION_END
    begin, end = BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END
    for pipeline in range(PIPELINES):
        for microbatch in range(MICROBATCHES):
            forward, backward = f"F{microbatch}", f"B{microbatch}"
            assert instants[pipeline, 1, begin, forward] >= instants[pipeline, 0, end, forward]
            assert instants[pipeline, 0, begin, backward] >= instants[pipeline, 1, end, backward]
    for stage in range(STAGES):
        finished = [told[pipeline, stage][-1].time_nanoseconds for pipeline in range(PIPELINES)]
        computed = [instants[pipeline, stage, end, f"B{MICROBATCHES - 1}"] for pipeline in range(PIPELINES)]
        assert min(finished) >= max(computed), "the gradient synchronisation waits for the slowest replica"


@pytest.mark.parametrize("schedule", CHUNKED_ORDERS)
def test_ranks_with_two_chunks_pass_microbatches_through_the_whole_model(
    schedule: str, simulated_node: NodeFactory, tmp_path: Path, agent_side: AgentSide
) -> None:
    profile = example_profile(2 * STAGES, seconds=0.02, instructions={**WHOLE, **SPLIT})
    job, iterations = Job(simulated_node(RANKS, profile, time_scale=5.0), tmp_path), 2
    changes = {names.ENV_SCHEDULE: schedule, names.ENV_CHUNKS: "2", names.ENV_MICROBATCHES: "2"}
    try:
        ranks = job.start_all(iterations, **changes, **{names.ENV_SOCKET: str(agent_side.path)})
        told = {}
        for _ in ranks:
            connection, hello = agent_side.accept()
            connection.settimeout(START_SECONDS)
            connection.send(Welcome(Verdict.SERVED).pack())
            told[hello.pipeline, hello.stage] = connection
        seen = {place: list(boundaries(connection)) for place, connection in told.items()}
        assert [ends(rank)[0] for rank in ranks] == [0] * RANKS
    finally:
        job.end()
    begins: dict[tuple[int, str, int, int], int] = {}
    finished: dict[tuple[int, str, int, int], int] = {}
    line = Pipeline(STAGES, 2, Schedule(schedule), chunks=2)
    for (pipeline, stage), boundary in ((place, each) for place, each_of in seen.items() for each in each_of):
        if boundary.iteration == iterations - 1 and boundary.instruction is not None:
            kind = "F" if boundary.instruction is Instruction.FORWARD else boundary.instruction.code
            place = (pipeline, kind, line.virtual_stage(stage, boundary.chunk), boundary.microbatch)
            (begins if boundary.kind is BoundaryKind.INSTRUCTION_BEGIN else finished)[place] = boundary.time_nanoseconds
    gradient = "I" if schedule == "ZBV" else "B"
    for pipeline in range(PIPELINES):
        for stage in range(STAGES):
            order = [
                f"{each.instruction.code}{each.chunk}.{each.microbatch}" for each in seen[pipeline, stage]
                if each.iteration == iterations - 1 and each.instruction and each.kind is BoundaryKind.INSTRUCTION_BEGIN
            ]  # fmt: skip
            assert " ".join(order) == CHUNKED_ORDERS[schedule][stage]
        for microbatch in range(2):
            for part in range(1, 2 * STAGES):
                after, before = (pipeline, "F", part, microbatch), (pipeline, "F", part - 1, microbatch)
                assert begins[after] >= finished[before]
                back, waited = (pipeline, gradient, part - 1, microbatch), (pipeline, gradient, part, microbatch)
                assert begins[back] >= finished[waited]


def test_work_is_done_on_the_ranks_own_gpu_and_costs_its_energy(job: Job) -> None:
    iterations = 2
    results = [ends(rank) for rank in job.start_all(iterations)]
    for index, (status, out, err) in enumerate(results):
        assert (status, err) == (0, "")
        assert [line.split(":")[0] for line in out.splitlines()[1:]] == ["iteration 0", "iteration 1"]
        gpu, stage = job.node.gpus[index], index % STAGES
        assert gpu.status().kernels == iterations * MICROBATCHES * 2
        costs = [job.node.expected(stage, each, 1410)[1] for each in (Instruction.FORWARD, Instruction.BACKWARD)]
        assert gpu.energy_joules >= iterations * MICROBATCHES * sum(costs) * 0.999


@pytest.mark.parametrize("victim", range(RANKS))
def test_a_killed_rank_ends_all_others_with_one_sentence(victim: int, job: Job) -> None:
    ranks = job.start_all()
    for rank in ranks:
        reach(rank, "iteration 0")
    ranks[victim].kill()
    for index, rank in enumerate(ranks):
        status, _, err = ends(rank)
        if index != victim:
            assert status == EXIT_PEER_LOST
            assert len(err.splitlines()) == 1
            assert "is gone" in err


def test_ranks_restarted_one_by_one_meet_again_and_train_from_the_beginning(job: Job) -> None:
    ranks = job.start_all()
    reach(ranks[0], "iteration 0")
    ranks[3].kill()
    # Each is restarted as soon as it has ended, the killed one before the others have noticed.
    again = {3: job.start(3, iterations=2)}
    while len(again) < RANKS:
        for index, rank in enumerate(ranks):
            if index not in again and rank.poll() is not None:
                again[index] = job.start(index, iterations=2)
        time.sleep(0.01)
    for rank in again.values():
        status, out, err = ends(rank)
        assert (status, err) == (0, "")
        assert [line.split(":")[0] for line in out.splitlines()[1:]] == ["iteration 0", "iteration 1"]


def test_strangers_at_the_door_are_turned_away(job: Job) -> None:
    first = job.start(0, iterations=1)
    knocks: list[Callable[[socket.socket], object]] = [
        lambda stranger: stranger.sendall(b"GET / HTTP/1.1\r\n\r\n"),
        lambda stranger: stranger.sendall(b"PRSL\xff\xff\xff\xff"),
        lambda stranger: stranger.shutdown(socket.SHUT_WR),
    ]
    for knock in knocks:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", job.ports[0]), timeout=DEADLINE_SECONDS)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with stranger:
            knock(stranger)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(16) == b""
    ranks = [first, *(job.start(rank, iterations=1) for rank in (1, 2, 3))]
    assert [ends(rank)[0] for rank in ranks] == [0] * RANKS


def test_a_rank_told_to_stop_stops(job: Job) -> None:
    ranks = job.start_all()
    reach(ranks[0], "iteration 0")
    ranks[0].terminate()
    assert ends(ranks[0])[0] == EXIT_TERMINATED


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({names.ENV_RANK: "4"}, "PERSEUS_RANK is 4, but there are 4 ranks"),
        ({names.ENV_RANK: "x"}, names.ENV_RANK),
        ({names.ENV_SCHEDULE: "ZB-H1"}, "PERSEUS_SCHEDULE must be one of 1F1B, GPipe"),
        ({names.ENV_SCHEDULE: "ZBV"}, "PERSEUS_SCHEDULE: the schedule ZBV has 2 chunks"),
        ({names.ENV_SCHEDULE: "Recorded"}, "PERSEUS_SCHEDULE Recorded needs orders in PERSEUS_SIMULATOR_ORDERS"),
        (
            {names.ENV_SCHEDULE: "Recorded", ENV_ORDERS: '{"order": ["FB"], "microbatches": [[0, 0]]}'},
            "PERSEUS_SIMULATOR_ORDERS: they are of 1 stages, not 2",
        ),
        ({names.ENV_VISIBLE_DEVICES: "GPU-1,GPU-2"}, "request nvidia.com/gpu: 1"),
        ({names.ENV_VISIBLE_DEVICES: "GPU-none"}, "GPU-none is not a GPU of this node"),
        ({ENV_PEER_ADDRESSES: "", names.ENV_COORDINATOR: "gpt"}, names.ENV_COORDINATOR),
        ({ENV_PEER_ADDRESSES: "one:1"}, ENV_PEER_ADDRESSES),
        ({"PERSEUS_SIMULATOR_STATE": ""}, "PERSEUS_SIMULATOR_STATE is not set"),
    ],
)
def test_an_environment_that_makes_no_sense_is_said_in_one_sentence(
    change: dict[str, str], named: str, job: Job
) -> None:
    status, _, err = ends(job.start(0, iterations=1, **change))
    assert status == 1
    assert named in err
    assert len(err.splitlines()) == 1
