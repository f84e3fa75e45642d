"""Invariant 6 on a real API server: killed at a write, before or after it was done, the operator comes to the same end.

Reduced to the first write of each kind, killed alternately before and after, so that every commit is tried;
`make bench-writes` kills at every write, before and after.
"""

from __future__ import annotations

import re
import time

import pytest

from harness.proxy import Moment, Request
from harness.scenario import Life, Outcome, Stage
from harness.sweep import kill_at, undisturbed

pytestmark = pytest.mark.cluster
# What a life writes, in the order in which each first appears.
KINDS = (
    "PATCH perseusjobs", "PATCH configmaps", "PATCH serviceaccounts", "PATCH roles", "PATCH rolebindings",
    "PATCH jobs", "PATCH services", "PATCH perseusjobs/status", "POST events", "PATCH configmaps of the operator",
    "DELETE configmaps of the operator",
)  # fmt: skip


def kind(request: Request) -> str:
    match = re.fullmatch(r".*/namespaces/([^/]+)/([a-z]+)(?:/[^/]+)?(/status)?", request.path)
    assert match, request.path
    ours = " of the operator" if match[1] == "perseus-system" else ""
    return f"{request.method} {match[2]}{match[3] or ''}{ours}"


@pytest.fixture(scope="module")
def calm(stage: Stage) -> Outcome:
    """The undisturbed life."""
    return undisturbed(stage)


@pytest.fixture(scope="module")
def first_writes(stage: Stage, calm: Outcome) -> dict[str, int]:
    """By kind, the number of its first write in the undisturbed life."""
    found: dict[str, int] = {}
    for request in stage.proxy.writes:
        found.setdefault(kind(request), request.write)
    return found


def test_a_life_writes_nothing_but_these(first_writes: dict[str, int]) -> None:
    assert set(first_writes) == set(KINDS)


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_killed_at_a_write_the_operator_comes_to_the_same_end(
    stage: Stage, calm: Outcome, first_writes: dict[str, int], index: int
) -> None:
    moment = (Moment.BEFORE, Moment.AFTER)[index % 2]
    kill = kill_at(stage, calm, first_writes[KINDS[index]], moment, lambda request: kind(request) == KINDS[index])
    assert kill.request, "nobody was killed"
    assert kill.found == []


def test_a_restart_writes_nothing_while_pipelines_are_measured(stage: Stage) -> None:
    stage.operator.kill()
    stage.proxy.clear()
    life = Life(stage, "restarted")
    for step in ("create", "profile", "pods", "plan", "settle"):
        life.steps()[step]()
    stage.operator.kill()
    stage.proxy.clear()
    stage.operator.start()
    life.wait("the operator visits jobs", lambda: stage.operator.page("readyz")[0] == 200)
    time.sleep(6)
    assert [f"{each.method} {each.path}" for each in stage.proxy.writes] == []
    life.delete()
