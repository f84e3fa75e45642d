"""Where a boundary is on an accelerator. No GPU here: the stream is a thread that runs what is queued on it.

The callback is real: the C library's function at its address, called from a thread that knows nothing of the hooks.
Where a GPU is to hand the last test runs on it.
"""

from __future__ import annotations

import ctypes
import functools
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator

import perseus_trainer
import pytest
import torch
from agent_side import AgentSide, eventually, read
from perseus_api.messages import BoundaryKind
from perseus_trainer import Rank, Session
from perseus_trainer.adapters import AdapterProblem, cuda
from perseus_trainer.edges import CallbackEdge, SynchronisingEdge

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Stream:
    """A device's queue of work: kernels that take time, and host functions between them."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._worker = threading.Thread(target=self._run)
        self._worker.start()

    def kernel(self, seconds: float) -> None:
        self._queue.put(lambda: time.sleep(seconds))

    def launch(self, function: int, argument: int) -> None:
        self._queue.put(lambda: HOST_FUNCTION(function)(argument))

    def synchronize(self) -> None:
        reached = threading.Event()
        self._queue.put(reached.set)
        reached.wait()

    def end(self) -> None:
        self._queue.put(None)
        self._worker.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.end()


def train(session: Session, stream: Stream) -> float:
    """An iteration of two kernels; return how long Python took to queue them."""
    begin = time.monotonic()
    with session.iteration(3):
        for instruction in ("forward", "backward"):
            with session.instruction(instruction, microbatch=1):
                stream.kernel(0.1)
    return time.monotonic() - begin


@pytest.mark.parametrize("way", ["synchronising", "callback"])
def test_a_boundary_is_where_the_device_gets_there(way: str, stream: Stream, agent_side: AgentSide, rank: Rank) -> None:
    edge = SynchronisingEdge(stream.synchronize) if way == "synchronising" else CallbackEdge(stream.launch)
    session = perseus_trainer.connect(rank, str(agent_side.path), edge=edge)
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    taken = train(session, stream)
    told = [each for each in (read(connection) for _ in range(6)) if each is not None]
    begin, end = BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END
    kinds = [BoundaryKind.ITERATION_BEGIN, begin, end, begin, end, BoundaryKind.ITERATION_END]
    assert [each.kind for each in told] == kinds
    assert {each.iteration for each in told} == {3}
    for first in (1, 3):
        assert told[first + 1].time_nanoseconds - told[first].time_nanoseconds >= 90_000_000
    if way == "callback":
        assert taken < 0.1, "Python does not wait for the device"
    session.close()


@pytest.mark.parametrize("way", ["synchronising", "callback"])
def test_an_edge_that_fails_is_said_once_and_boundaries_are_where_python_is(
    way: str, agent_side: AgentSide, rank: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no device")

    edge = SynchronisingEdge(fails) if way == "synchronising" else CallbackEdge(fails)
    session = perseus_trainer.connect(rank, str(agent_side.path), edge=edge)
    connection = agent_side.serve()
    eventually(lambda: session.connected, "the session is connected")
    for _ in range(2):
        with session.iteration(), session.instruction("forward"):
            pass
    assert sum(read(connection) is not None for _ in range(8)) == 8
    assert caplog.text.count("(no device): boundaries are where Python is") == 1
    session.close()


def test_boundaries_of_several_threads_keep_their_order_on_the_stream(stream: Stream) -> None:
    edge = CallbackEdge(stream.launch)
    told: list[tuple[int, int]] = []

    def work(thread: int) -> None:
        for number in range(50):
            edge.reach(functools.partial(told.append, (thread, number)))

    threads = [threading.Thread(target=work, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(told) == 200, "all are told")
    for thread_index in range(4):
        assert [number for thread, number in told if thread == thread_index] == list(range(50))


@pytest.mark.parametrize(
    ("at", "device", "edge"),
    [
        ("auto", "cpu", None),
        ("auto", "cuda", SynchronisingEdge),
        ("host", "cuda", None),
        ("synchronised", "cpu", SynchronisingEdge),
    ],
)
def test_adapters_choose_the_safe_edge_on_cuda(at: str, device: str, edge: type | None) -> None:
    session = perseus_trainer.connect(record=True)
    cuda.place(session, at, device)
    assert type(session.edge) is (edge or type(None))


def test_an_edge_that_the_script_chose_stays() -> None:
    chosen = SynchronisingEdge(lambda: None)
    session = perseus_trainer.connect(record=True, edge=chosen)
    cuda.place(session, "auto", "cuda")
    assert session.edge is chosen


def test_an_unknown_place_of_boundaries_is_named() -> None:
    with pytest.raises(ValueError, match="somewhere"):
        cuda.place(perseus_trainer.connect(), "somewhere", "cuda")


def test_callbacks_without_cuda_bindings_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # As where the package is not installed.
    with pytest.raises(AdapterProblem, match='install it, or choose boundary "synchronised"'):
        cuda.place(perseus_trainer.connect(record=True), "callback", "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("make", [cuda.synchronising, cuda.callbacks])
def test_without_a_gpu_cudas_edges_tell_at_once(
    make: Callable[[], SynchronisingEdge | CallbackEdge], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    edge = make()
    for number in range(2):
        edge.reach(functools.partial(told.append, number))
    assert told == [0, 1]
    assert caplog.text.count("boundaries are where Python is") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [cuda.synchronising, cuda.callbacks])
def test_on_a_gpu_a_boundary_is_where_the_gpu_gets_there(make: Callable[[], SynchronisingEdge | CallbackEdge]) -> None:
    done = torch.cuda.Event()
    seen: list[bool] = []
    edge = make()
    torch.cuda._sleep(100_000_000)
    done.record()
    assert not done.query(), "the kernel runs still"
    edge.reach(lambda: seen.append(done.query()))
    eventually(lambda: seen == [True], "the boundary is told after the kernel")
