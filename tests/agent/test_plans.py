"""Plans as the API brings them: a bad one is refused with a reason and counted, the last good one stays in force."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pytest
from agent_process import PLAN_NAME, AgentProcess, Trainer, eventually, make_plan
from perseus_api.encoding import MAXIMUM_COMPRESSED_BYTES, MAXIMUM_INFLATED_BYTES, encode
from perseus_api.names import plan_config_map_name
from perseus_api.plan import Plan
from perseus_daemonset.plans import PlanStore
from perseus_simulator.node import SimulatedNode

JOB = ("research", "gpt")


def foreign() -> bytes:
    other = {"namespace": "research", "name": "other", "uid": "job-2"}
    return make_plan(9).model_copy(update={"job": type(make_plan().job).model_validate(other)}).encode()


def forged() -> bytes:
    """Another clock under the checksum of the plan before."""
    text = json.loads(gzip.decompress(make_plan(9).encode()))
    text["variants"][0]["clocks"][0][0] = 210
    return gzip.compress(json.dumps(text).encode())


BAD: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "corrupt": (lambda: make_plan(9).encode()[:-20], "invalid"),
    "forged": (forged, "invalid"),
    "empty": (lambda: b"", "invalid"),
    "missing": (lambda: None, "invalid"),
    "oversized": (lambda: b"\0" * (MAXIMUM_COMPRESSED_BYTES + 1), "invalid"),
    "a bomb": (lambda: gzip.compress(b" " * (MAXIMUM_INFLATED_BYTES + 1)), "invalid"),
    "of a schema to come": (lambda: encode({**make_plan(9).model_dump(by_alias=True), "schemaVersion": 2}), "invalid"),
    "old": (lambda: make_plan(4).encode(), "old"),
    "other at the same generation": (lambda: make_plan(5, clock=1200).encode(), "old"),
    "foreign": (foreign, "foreign"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_bad_plan_leaves_the_last_good_one(case: str) -> None:
    make, reason = BAD[case]
    store = PlanStore()
    store.put(PLAN_NAME, JOB, make_plan(5).encode())
    changed: list[tuple[str, str]] = []
    store.on_change = changed.append
    store.put(PLAN_NAME, JOB, make())
    assert store.find(*JOB) == make_plan(5)
    assert store.rejected == {(*JOB, reason): 1}
    assert changed == []


@pytest.mark.parametrize("case", ["corrupt", "foreign", "missing"])
def test_a_bad_plan_without_a_good_one_before_is_none(case: str) -> None:
    store = PlanStore()
    store.put(PLAN_NAME, JOB, BAD[case][0]())
    assert store.find(*JOB) is None


def test_the_same_plan_again_is_no_news_and_no_refusal() -> None:
    store = PlanStore()
    store.put(PLAN_NAME, JOB, make_plan(5).encode())
    changed: list[tuple[str, str]] = []
    store.on_change = changed.append
    store.put(PLAN_NAME, JOB, make_plan(5).encode())
    assert (changed, store.rejected) == ([], {})


def test_a_job_made_anew_under_its_name_begins_its_generations_anew() -> None:
    store = PlanStore()
    store.put(PLAN_NAME, JOB, make_plan(5).encode())
    again = make_plan(1).model_copy(
        update={"job": type(make_plan().job).model_validate({"namespace": "research", "name": "gpt", "uid": "job-9"})}
    )
    store.put(PLAN_NAME, JOB, again.encode())
    assert store.find(*JOB) == again


def test_what_a_whole_listing_does_not_hold_is_withdrawn() -> None:
    store = PlanStore()
    store.put(PLAN_NAME, JOB, make_plan().encode())
    store.replace({plan_config_map_name("research", "other")})
    assert store.find(*JOB) is None


def test_a_plan_of_the_job_before_is_not_for_this_pod(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    """A job was deleted and made anew: its old plan may still be there when the new pods start."""
    other = {"namespace": "research", "name": "gpt", "uid": "job-0"}
    agent.plan(Plan.model_validate({**make_plan().model_dump(by_alias=True), "job": other}))
    trainer.begin(1)
    trainer.run(1, "F")
    eventually(lambda: 'state="no_plan"' in agent.counters()["metrics"], "it has no plan")
    assert node.gpus[0].locked_range() is None


def test_a_refused_plan_is_counted_and_the_clock_in_force_stays(
    agent: AgentProcess, trainer: Trainer, node: SimulatedNode
) -> None:
    agent.plan(make_plan(5))
    trainer.begin(1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the clock is locked")
    agent.plan(make_plan(4, clock=1200))
    assert agent.plan(b"nonsense")["rejected"] == [["research", "gpt", "old", 1], ["research", "gpt", "invalid", 1]]
    for iteration in (1, 2):
        trainer.run(iteration, "FB")
        trainer.begin(iteration + 1)
    eventually(lambda: node.gpus[0].locked_range() == (810, 810), "the good plan holds on")
