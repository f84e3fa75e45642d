"""What keeps the operator running for a year: logs that name the job, honest health, traces, the queue of visits."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from perseus_operator import health as health_module
from perseus_operator import logs, tracing, visits
from perseus_operator.backstop import Backstop
from perseus_operator.client import ApiRefusal
from perseus_operator.health import Health
from perseus_operator.memory import Memory
from perseus_operator.scope import Scope
from perseus_operator.settings import Settings, SettingsError
from perseus_operator.visits import JobKey, VisitQueue

from harness.traces import Collector


@pytest.fixture
def stream() -> io.StringIO:
    """Where logs go."""
    return io.StringIO()


@pytest.fixture
def written(stream: io.StringIO) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Reads what was logged as JSON, with the root logger put back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)


def test_a_log_line_names_the_job_and_its_generation(
    stream: io.StringIO, written: Callable[[], list[dict[str, Any]]]
) -> None:
    logs.set_up_logs("json", stream)
    with logs.about("team", "train"):
        logs.about_generation(3)
        logging.getLogger("perseus.operator").info("plan %d", 2)
    logging.getLogger("perseus.operator").info("nobody's")
    first, second = written()
    assert (first["message"], first["namespace"], first["job"], first["generation"]) == ("plan 2", "team", "train", 3)
    assert (first["level"], first["logger"]) == ("INFO", "perseus.operator")
    assert first["time"]
    assert "namespace" not in second


async def test_two_visits_at_once_do_not_mix_their_names(
    stream: io.StringIO, written: Callable[[], list[dict[str, Any]]]
) -> None:
    logs.set_up_logs("json", stream)

    async def visit(job: str) -> None:
        with logs.about("team", job):
            await asyncio.sleep(0)
            logging.getLogger("perseus.operator").info("%s", job)

    await asyncio.gather(*(visit(f"job-{index}") for index in range(20)))
    lines = written()
    assert len(lines) == 20
    assert all(line["message"] == line["job"] for line in lines)


def test_an_unknown_log_format_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="PERSEUS_LOG_FORMAT must be text or json"):
        Settings.from_environment({"PERSEUS_OPERATOR_NAMESPACE": "a", "PERSEUS_LOG_FORMAT": "yaml"})


class _Reconciler:
    async def sweep(self) -> list[dict[str, Any]]:
        return []


def _job(name: str, generation: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": name, "generation": generation}}


async def test_health_fails_when_a_visit_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "LONGEST_VISIT_SECONDS", 0.05)
    entered = asyncio.Event()

    async def hang(_: JobKey) -> float | None:
        entered.set()
        await asyncio.Event().wait()
        return None

    queue, health = VisitQueue(hang), Health()
    assert not health.ready
    health.begins(queue, Backstop(_Reconciler(), queue), Scope())  # type: ignore[arg-type]
    assert health.ready
    running = asyncio.create_task(queue.run())
    queue.add(("team", "train"))
    await entered.wait()
    assert health.troubles() == []
    await asyncio.sleep(0.1)
    assert "it hangs" in health.troubles()[0]
    running.cancel()


async def test_health_fails_when_visits_are_due_and_nobody_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "OVERDUE_SECONDS", 0.05)

    async def visit(_: JobKey) -> float | None:
        return None

    queue, health = VisitQueue(visit), Health()
    health.begins(queue, Backstop(_Reconciler(), queue), Scope())  # type: ignore[arg-type]
    queue.add(("team", "train"))
    assert queue.depth() == 1
    await asyncio.sleep(0.1)
    assert "the visits stand still" in health.troubles()[0]


async def test_health_fails_when_the_watch_tells_nothing_and_the_job_is_visited_all_the_same() -> None:
    visited: list[JobKey] = []

    async def visit(key: JobKey) -> float | None:
        visited.append(key)
        return None

    queue, health = VisitQueue(visit), Health()
    backstop = Backstop(_Reconciler(), queue)  # type: ignore[arg-type]
    health.begins(queue, backstop, Scope())
    running = asyncio.create_task(queue.run())
    backstop.told(("team", "seen"), 1)
    backstop.compare([_job("seen", 1), _job("unseen", 1)])
    await asyncio.sleep(0.05)
    assert visited == [("team", "unseen")]
    assert health.troubles() == [], "one round may be ahead of the watch"
    backstop.compare([_job("seen", 1), _job("unseen", 1)])
    assert "the watch tells nothing of 1 jobs" in health.troubles()[0]
    backstop.told(("team", "unseen"), 1)
    backstop.compare([_job("seen", 1), _job("unseen", 1)])
    assert health.troubles() == []
    running.cancel()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses after visits that failed, in seconds; they are made shorter."""
    shorter = 1e-4
    for name in ("FIRST_BACKOFF_SECONDS", "LONGEST_BACKOFF_SECONDS", "AWAY_SECONDS"):
        monkeypatch.setattr(visits, name, getattr(visits, name) * shorter)
    noted: list[float] = []
    add = VisitQueue.add

    def note(self: VisitQueue, key: JobKey, delay_seconds: float = 0.0, urgent: bool = False) -> None:
        if delay_seconds:
            noted.append(round(delay_seconds / shorter, 3))
        add(self, key, delay_seconds, urgent)

    monkeypatch.setattr(VisitQueue, "add", note)
    return noted


async def _fail(errors: list[Exception]) -> None:
    """Let a job's visits fail, one after the other, until one does not."""
    left, over = errors[:], asyncio.Event()

    async def visit(_: JobKey) -> float | None:
        if left:
            raise left.pop(0)
        over.set()
        return None

    queue = VisitQueue(visit)
    running = asyncio.create_task(queue.run())
    queue.add(("team", "train"))
    await asyncio.wait_for(over.wait(), 10)
    running.cancel()


@pytest.mark.parametrize(
    "error",
    [ApiRefusal(422, "Invalid", "no"), ApiRefusal(429, "TooManyRequests", "later"), ValueError("our own")],
    ids=["422", "429", "our own"],
)
async def test_a_job_whose_visits_fail_is_visited_less_and_less_often(error: Exception, pauses: list[float]) -> None:
    await _fail([error] * 9)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    "error",
    [ApiRefusal(502, "BadGateway", ""), ApiRefusal(503, "Down", ""), aiohttp.ServerDisconnectedError(), TimeoutError()],
    ids=["502", "503", "cut", "timeout"],
)
async def test_an_api_server_that_was_away_counts_for_no_job(error: Exception, pauses: list[float]) -> None:
    """Right after its start the API server forbids what it will allow: that job must not wait for half a minute."""
    await _fail([*[error] * 9, ApiRefusal(403, "Forbidden", "RBAC: not found")])
    assert pauses == [2.0] * 9 + [0.5]


async def test_a_job_that_finds_nobody_while_others_do_is_itself_at_fault(pauses: list[float]) -> None:
    """Such as one whose template meets an admission webhook that never answers."""
    failures, over = 0, asyncio.Event()

    async def visit(key: JobKey) -> float | None:
        nonlocal failures
        if key == ("team", "well"):
            return None
        failures += 1
        if failures == 5:
            over.set()
            return None
        queue.add(("team", "well"))
        raise ApiRefusal(504, "Timeout", "the webhook does not answer")

    queue = VisitQueue(visit)
    running = asyncio.create_task(queue.run())
    queue.add(("team", "train"))
    await asyncio.wait_for(over.wait(), 10)
    assert pauses == [2.0, 0.5, 1.0, 2.0]
    running.cancel()


async def test_while_the_api_server_is_away_one_visit_looks_for_it_and_all_others_follow_at_its_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_module, "OVERDUE_SECONDS", 0.0)
    is_there, failed, over = False, asyncio.Event(), asyncio.Event()
    visited: set[JobKey] = set()
    together, at_once = 0, [0]

    async def visit(key: JobKey) -> float | None:
        nonlocal together
        together += 1
        at_once.append(together)
        await asyncio.sleep(0.001)
        together -= 1
        if not is_there:
            if len(at_once) > 200:
                failed.set()
            raise aiohttp.ServerDisconnectedError
        visited.add(key)
        if visited == jobs:
            over.set()
        return 60.0

    monkeypatch.setattr(visits, "AWAY_SECONDS", 0.01)
    queue, health = VisitQueue(visit), Health()
    health.begins(queue, Backstop(_Reconciler(), queue), Scope())  # type: ignore[arg-type]
    jobs = {("team", f"train-{index}") for index in range(40)}
    for key in jobs:
        queue.add(key)
    running = asyncio.create_task(queue.run())
    await asyncio.wait_for(failed.wait(), 30)
    assert max(at_once) == visits.WORKERS, "nobody knew at first"
    assert max(at_once[50:]) == 1
    assert queue.is_away
    assert queue.overdue_seconds() > 0
    assert health.troubles() == [], "a restart would bring no API server back"
    at_once.clear()
    is_there = True
    await asyncio.wait_for(over.wait(), 30)
    assert max(at_once) == visits.WORKERS
    assert not queue.is_away
    running.cancel()


async def test_new_and_urgent_jobs_go_before_those_that_only_might_have_changed() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def visit(key: JobKey) -> float | None:
        order.append(key[1])
        await gate.wait()
        return 60.0

    queue = VisitQueue(visit)
    running = asyncio.create_task(queue.run())
    for index in range(8):
        queue.add(("team", f"old-{index}"))
    await asyncio.sleep(0.05)
    for index in range(8):
        queue.add(("team", f"old-{index}"))
    for index in range(3):
        queue.add(("team", f"new-{index}"))
    queue.add(("team", "old-5"), urgent=True)
    gate.set()
    await asyncio.sleep(0.1)
    assert set(order[8:12]) == {"new-0", "new-1", "new-2", "old-5"}
    assert len(order) == 8 + 3 + 8, "an urgent wish is the same visit, not another one"
    running.cancel()


def test_a_memory_forgets_the_least_recently_used_beyond_its_weight() -> None:
    memory: Memory[str, str] = Memory(10)
    memory.put("a", "A", 4)
    memory.put("b", "B", 4)
    assert memory.get("a") == "A"
    memory.put("c", "C", 4)
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == ("A", None, "C")
    memory.put("heavy", "H", 100)
    assert (len(memory), memory.get("heavy")) == (1, "H")


def test_a_visit_is_traced_to_the_endpoint_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv(tracing.ENV_ENDPOINT, collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setattr(tracing, "_start", None)
        monkeypatch.setattr(tracing, "_shut_down", None)
        tracing.set_up_traces()
        with tracing.span("visit", namespace="team", job="train"), tracing.span("GET /api"):
            pass
        tracing.end_traces()
    inner, outer = sorted(collector.spans, key=lambda span: span.name == "visit")
    assert (inner.name, outer.name) == ("GET /api", "visit")
    assert inner.parent_span_id == outer.span_id
    assert {each.key: each.value.string_value for each in outer.attributes} == {
        "perseus.namespace": "team", "perseus.job": "train",
    }  # fmt: skip


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENV_ENDPOINT, raising=False)
    monkeypatch.setattr(tracing, "_start", None)
    tracing.set_up_traces()
    with tracing.span("visit") as span:
        assert span is None
