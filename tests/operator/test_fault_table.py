"""The fault table: each fault strikes one life of a job, and the end is that of a life without it.

`make bench-writes` plays the same table, and writes the counts down.
"""

from __future__ import annotations

import pytest

from harness.faults import FAULTS, play
from harness.scenario import Outcome, Stage
from harness.sweep import undisturbed

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def calm(stage: Stage) -> Outcome:
    """The undisturbed life."""
    return undisturbed(stage, "fault-free")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_loses_no_plan_doubles_no_object_and_leaves_no_finalizer(
    stage: Stage, calm: Outcome, fault: str
) -> None:
    row = play(stage, calm, fault)
    assert row.struck > 0, "the fault never struck"
    assert row.found == []
