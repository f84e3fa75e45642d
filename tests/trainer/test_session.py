"""The hooks as a training script sees them: what reaches the agent, and that nothing is paid without one."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import perseus_trainer
import pytest
from agent_side import AgentSide, eventually, read
from hypothesis import given
from hypothesis import strategies as st
from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind, ChunkPlacement, Verdict, Welcome
from perseus_api.ranks import RankOrder
from perseus_trainer import Rank
from perseus_trainer.environment import EnvironmentProblem

ENVIRONMENT = {
    names.ENV_NAMESPACE: "research",
    names.ENV_JOB: "gpt",
    names.ENV_RANK: "11",
    names.ENV_STAGES: "8",
    names.ENV_VISIBLE_DEVICES: "GPU-1",
}


def shape(boundary: Boundary | None) -> tuple[object, ...]:
    assert boundary is not None
    return boundary.kind, boundary.iteration, boundary.instruction, boundary.microbatch, boundary.chunk


def test_the_agent_is_told_who_trains_and_each_boundary_in_its_order(agent_side: AgentSide, rank: Rank) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection, hello = agent_side.accept()
    assert (hello.namespace, hello.job, hello.gpu_uuid) == ("research", "gpt", "GPU-1")
    assert (hello.pipeline, hello.stage, hello.tensor_rank, hello.pid) == (1, 3, 0, os.getpid())
    assert not session.connected, "connected before the agent said that it serves"
    connection.send(Welcome(Verdict.SERVED).pack())
    eventually(lambda: session.connected, "the session is connected")
    begin = time.monotonic_ns()
    with session.iteration(), session.instruction("forward", microbatch=3, chunk=1):
        inside = time.monotonic_ns()
    with session.iteration(), session.instruction(Instruction.BACKWARD_WEIGHT):
        pass
    end = time.monotonic_ns()
    told = [read(connection) for _ in range(8)]
    forward, weight = Instruction.FORWARD, Instruction.BACKWARD_WEIGHT
    assert [shape(each) for each in told] == [
        (BoundaryKind.ITERATION_BEGIN, 0, None, 0, 0),
        (BoundaryKind.INSTRUCTION_BEGIN, 0, forward, 3, 1),
        (BoundaryKind.INSTRUCTION_END, 0, forward, 3, 1),
        (BoundaryKind.ITERATION_END, 0, None, 0, 0),
        (BoundaryKind.ITERATION_BEGIN, 1, None, 0, 0),
        (BoundaryKind.INSTRUCTION_BEGIN, 1, weight, 0, 0),
        (BoundaryKind.INSTRUCTION_END, 1, weight, 0, 0),
        (BoundaryKind.ITERATION_END, 1, None, 0, 0),
    ]
    instants = [each.time_nanoseconds for each in told if each is not None]
    assert instants == sorted(instants)
    assert begin <= instants[1] <= inside <= instants[2]
    assert instants[-1] <= end
    session.close()


@pytest.mark.parametrize(
    ("said", "told"), [(None, ChunkPlacement.UNKNOWN), (False, ChunkPlacement.LOOP), (True, ChunkPlacement.V)]
)
def test_how_chunks_lie_is_told_when_an_iteration_begins(
    said: bool | None, told: ChunkPlacement, agent_side: AgentSide, rank: Rank
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path), v_shape=said)
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    with session.iteration():
        pass
    assert shape(read(connection)) == (BoundaryKind.ITERATION_BEGIN, 0, None, 0, told)
    assert shape(read(connection)) == (BoundaryKind.ITERATION_END, 0, None, 0, 0)
    session.close()


def test_an_exception_of_the_training_passes_and_its_iteration_is_told_as_broken(
    agent_side: AgentSide, rank: Rank
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    with pytest.raises(ZeroDivisionError), session.iteration(), session.instruction("forward"):
        _ = 1 // 0
    with session.iteration():
        pass
    kinds = [shape(read(connection))[0] for _ in range(5)]
    assert kinds == [
        BoundaryKind.ITERATION_BEGIN,
        BoundaryKind.INSTRUCTION_BEGIN,
        BoundaryKind.ITERATION_BROKEN,
        BoundaryKind.ITERATION_BEGIN,
        BoundaryKind.ITERATION_END,
    ], "what an exception left has not ended"
    session.close()
    assert read(connection) is None, "closing the session gives the lease up"


def test_boundaries_of_several_threads_arrive_whole(agent_side: AgentSide, rank: Rank) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    threads, each = 4, 12

    def work(chunk: int) -> None:
        for microbatch in range(each):
            with session.instruction("forward", microbatch=microbatch, chunk=chunk):
                pass

    workers = [threading.Thread(target=work, args=(chunk,)) for chunk in range(threads)]
    with session.iteration(0):
        for worker in workers:
            worker.start()
        told = [read(connection) for _ in range(1 + threads * each * 2)]
        for worker in workers:
            worker.join()
    for chunk in range(threads):
        mine = [shape(boundary)[0::3] for boundary in told[1:] if boundary is not None and boundary.chunk == chunk]
        kinds = (BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END)
        assert mine == [(kind, microbatch) for microbatch in range(each) for kind in kinds]
    session.close()


def test_without_an_agents_socket_every_hook_is_one_object_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_SOCKET, raising=False)
    before = threading.active_count()
    session = perseus_trainer.connect()
    hooks = {id(session.iteration()), id(session.instruction("forward")), id(session.instruction("backward"))}
    assert len(hooks) == 1
    with session.iteration(), session.instruction("forward", microbatch=1):
        pass
    assert not session.connected
    assert threading.active_count() == before
    session.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({names.ENV_RANK: "first"}, names.ENV_RANK),
        ({names.ENV_RANK: "-1"}, names.ENV_RANK),
        ({names.ENV_STAGES: ""}, names.ENV_STAGES),
        ({names.ENV_STAGES: "0"}, names.ENV_STAGES),
        ({names.ENV_JOB: ""}, names.ENV_JOB),
        ({names.ENV_NAMESPACE: ""}, names.ENV_NAMESPACE),
        ({names.ENV_JOB: "j" * 64}, "63 bytes"),
        ({names.ENV_JOB: os.fsdecode(b"\xff")}, "must be UTF-8"),
        ({names.ENV_RANK: str(8 * 2**32)}, "is not one of the"),
        ({names.ENV_RANK_ORDER: "Backwards"}, "PipelineStageTensor"),
    ],
)
def test_training_goes_on_without_perseus_when_a_variable_makes_no_sense(
    change: dict[str, str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in {**ENVIRONMENT, names.ENV_SOCKET: str(tmp_path / "agent.sock"), **change}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, logger="perseus.trainer"):
        session = perseus_trainer.connect()
    assert named in caplog.text
    assert "training goes on without Perseus" in caplog.text
    with session.iteration(), session.instruction("forward"):
        pass


@pytest.mark.parametrize("microbatch", [-1, 2**32])
def test_a_number_that_no_message_holds_is_said_and_training_goes_on(
    microbatch: int, agent_side: AgentSide, rank: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    with session.iteration(6), session.instruction("forward", microbatch=microbatch):
        pass
    assert caplog.text.count("does not fit its field") == 1
    with session.iteration(7):
        pass
    found = [shape(read(connection))[:2] for _ in range(3)]
    assert found == [
        (BoundaryKind.ITERATION_BEGIN, 6),
        (BoundaryKind.ITERATION_END, 6),
        (BoundaryKind.ITERATION_BEGIN, 7),
    ]
    session.close()


def test_outside_of_iterations_nothing_is_said(
    agent_side: AgentSide, rank: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    session = perseus_trainer.connect(rank, str(agent_side.path))
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    with session.instruction("forward"):
        pass
    with session.iteration():
        pass
    assert shape(read(connection))[:2] == (BoundaryKind.ITERATION_BEGIN, 0)
    session.close()


def test_an_unknown_instruction_is_the_scripts_mistake_with_and_without_an_agent() -> None:
    with pytest.raises(ValueError, match="forwards"):
        perseus_trainer.connect().instruction("forwards")


@given(st.integers(1, 64), st.integers(1, 8), st.data())
def test_a_rank_is_found_at_the_place_that_the_operator_counted(
    stages: int, tensor_parallel: int, data: st.DataObject
) -> None:
    pipeline, stage = data.draw(st.integers(0, 31)), data.draw(st.integers(0, stages - 1))
    tensor_rank = data.draw(st.integers(0, tensor_parallel - 1))
    found = Rank.from_environment(
        {
            **ENVIRONMENT,
            names.ENV_RANK: str((pipeline * stages + stage) * tensor_parallel + tensor_rank),
            names.ENV_STAGES: str(stages),
            names.ENV_TENSOR_PARALLEL: str(tensor_parallel),
        }
    )
    assert (found.pipeline, found.stage, found.tensor_rank) == (pipeline, stage, tensor_rank)


@pytest.mark.parametrize(
    ("variables", "gpu"),
    [
        ({names.ENV_VISIBLE_DEVICES: "GPU-1"}, "GPU-1"),
        ({names.ENV_VISIBLE_DEVICES: "GPU-1,GPU-2"}, ""),
        ({names.ENV_VISIBLE_DEVICES: "GPU-1,GPU-2", names.ENV_GPU_UUID: "GPU-2"}, "GPU-2"),
        ({names.ENV_VISIBLE_DEVICES: "0"}, ""),
        ({names.ENV_VISIBLE_DEVICES: "all"}, ""),
    ],
)
def test_a_gpu_is_named_by_uuid_or_left_to_the_agent(variables: dict[str, str], gpu: str) -> None:
    assert Rank.from_environment({**ENVIRONMENT, **variables}).gpu_uuid == gpu


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(EnvironmentProblem, match="PERSEUS_RANK is not set: set it, or start the script with torchrun"):
        Rank.from_environment({})


def test_a_number_that_is_none_is_named_as_its_own_variable() -> None:
    with pytest.raises(EnvironmentProblem, match=r"^PERSEUS_STAGES must be at least 1, not 0$"):
        Rank.from_environment({**ENVIRONMENT, names.ENV_STAGES: "0"})
    with pytest.raises(EnvironmentProblem, match=r"^PERSEUS_RANK must be a whole number, not 'x'$"):
        Rank.from_environment({**ENVIRONMENT, names.ENV_RANK: "x"})


def test_torchruns_own_rank_is_taken_where_the_operator_sets_none() -> None:
    given = {**ENVIRONMENT, names.ENV_RANK: "", names.ENV_TORCH_RANK: "3", names.ENV_STAGES: "2"}
    rank = Rank.from_environment(given)
    assert (rank.pipeline, rank.stage) == (1, 1)


def test_megatrons_order_of_ranks_can_be_named() -> None:
    given = {
        **ENVIRONMENT, names.ENV_RANK: "2", names.ENV_STAGES: "2", names.ENV_PIPELINES: "2",
        names.ENV_RANK_ORDER: RankOrder.STAGE_PIPELINE_TENSOR.value,
    }  # fmt: skip
    rank = Rank.from_environment(given)
    assert (rank.pipeline, rank.stage) == (0, 1)


@pytest.mark.parametrize(("local", "gpu"), [("1", "GPU-b"), ("0", "GPU-a"), ("2", ""), ("", "")])
def test_a_process_takes_the_gpu_of_its_local_rank(local: str, gpu: str) -> None:
    given = {**ENVIRONMENT, names.ENV_VISIBLE_DEVICES: "GPU-a,GPU-b", names.ENV_TORCH_LOCAL_RANK: local}
    given.pop(names.ENV_GPU_UUID, None)
    assert Rank.from_environment(given).gpu_uuid == gpu
