"""What `kubectl get pjob` says at each step of a job's life: state, step, straggler, plan and savings in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from harness.scenario import JOB, Life, Stage

pytestmark = pytest.mark.cluster
# Empty cells are blanks: the columns are told by where their titles stand.
TITLES = ("NAME", "READY", "REASON", "STRAGGLER", "PLAN", "PREDICTED (PERMILLE)", "SAVINGS (PERMILLE)", "AGE")


@pytest.fixture
def life(stage: Stage) -> Iterator[Life]:
    """A job that begins its life."""
    stage.operator.kill()
    stage.proxy.clear()
    found = Life(stage, "one-line")
    yield found
    stage.training.end(found.key)
    stage.operator.kill()


def test_each_step_of_a_job_shows_in_its_line(life: Life) -> None:
    steps = life.steps()
    steps["create"]()
    life.wait("it waits for its frontier", lambda: told(life)["REASON"] == "Optimising")
    assert told(life)["READY"] == "False"
    for step in ("profile", "pods", "plan"):
        steps[step]()
    life.wait("it runs well", lambda: cells(life, "READY", "REASON", "STRAGGLER") == ("True", "Running", "NoStraggler"))
    first = int(told(life)["PLAN"])
    assert int(told(life)["PREDICTED (PERMILLE)"]) > 0
    steps["straggler"]()
    life.wait("the straggler is told", lambda: told(life)["STRAGGLER"] == "PipelineSlow")
    assert told(life)["READY"] == "True"
    assert int(told(life)["PLAN"]) > first
    assert told(life, "-o", "wide")["SLOW PIPELINE"] == "0"
    steps["recovery"]()
    life.wait("the recovery is told", lambda: told(life)["STRAGGLER"] == "NoStraggler")
    assert told(life, "-o", "wide")["SLOW PIPELINE"] == ""
    assert tuple(told(life)) == TITLES
    savings = (
        '{"status": {"savings": {"permille": 151, "energyJoules": 849, "baselineJoules": 1000, "source": "Measured"}}}'
    )
    life.stage.plane.kubectl(
        "patch", "pjob", JOB, "-n", life.namespace, "--subresource=status", "--type=merge", "-p", savings
    )
    assert told(life)["SAVINGS (PERMILLE)"] == "151"
    steps["delete"]()


def cells(life: Life, *titles: str) -> tuple[str, ...]:
    """Cells of the job's line."""
    line = told(life)
    return tuple(line[title] for title in titles)


def told(life: Life, *options: str) -> dict[str, str]:
    """The job's line by the titles of its columns."""
    text = life.stage.plane.kubectl("get", "pjob", JOB, "-n", life.namespace, *options)
    titles, line = text.splitlines()
    begins = [(match.start(), match[0]) for match in re.finditer(r"\S+(?: \S+)*", titles)]
    ends = [begin for begin, _ in begins[1:]] + [len(line)]
    return {title: line[begin:end].strip() for (begin, title), end in zip(begins, ends, strict=True)}
