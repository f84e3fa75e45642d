"""What is told of agents does not waver: what was seen counts for a while, and who starts anew looks first."""

from __future__ import annotations

from typing import Any

import pytest
from perseus_api.conditions import Condition, Reason
from perseus_operator.conditions import Story
from perseus_operator.measurements import Measurement
from perseus_operator.monitor import Monitor, WatchedJob
from perseus_operator.prometheus import JobReport
from perseus_operator.sight import SIGHT_SECONDS, Sight
from perseus_operator.steps.telling import tell_as_before
from perseus_operator.troubles import Trouble
from perseus_operator.visit import Visit

RANKS, PIPELINES = 4, 2


def report(generation: int = 1, ranks: int = RANKS, pipelines: int = PIPELINES) -> JobReport:
    moving = {index: Measurement(1.0, 5) for index in range(pipelines)}
    return JobReport(pipelines=moving, accepted={generation: ranks}, active={generation: ranks})


def told(sight: Sight) -> tuple[int, int, int]:
    assert sight.report is not None
    return sight.report.least_active, sight.report.ranks, len(sight.report.pipelines)


@pytest.mark.parametrize("lacking", [None, JobReport(), report(ranks=3), report(pipelines=1)])
def test_a_scrape_that_fails_is_no_news_and_one_that_goes_on_failing_is(lacking: JobReport | None) -> None:
    sight = Sight(None, 0.0)
    assert sight.take(report(), RANKS, PIPELINES, 1.0)
    assert not sight.take(lacking, RANKS, PIPELINES, 2.0)
    assert not sight.take(lacking, RANKS, PIPELINES, 0.9 + SIGHT_SECONDS)
    assert told(sight) == (1, RANKS, PIPELINES)
    assert sight.take(lacking, RANKS, PIPELINES, 1.0 + SIGHT_SECONDS)
    assert told(sight) != (1, RANKS, PIPELINES)


def test_all_that_comes_back_counts_at_once_and_begins_the_while_anew() -> None:
    sight = Sight(None, 0.0)
    sight.take(report(), RANKS, PIPELINES, 1.0)
    sight.take(None, RANKS, PIPELINES, 10.0)
    assert sight.take(report(generation=2), RANKS, PIPELINES, 14.0)
    assert not sight.take(None, RANKS, PIPELINES, 13.0 + SIGHT_SECONDS)
    assert told(sight) == (2, RANKS, PIPELINES)


def test_more_and_more_ranks_of_a_job_that_starts_are_told_at_once() -> None:
    sight = Sight(JobReport(), 0.0)
    for ranks in range(1, RANKS + 1):
        assert sight.take(report(ranks=ranks, pipelines=1), RANKS, PIPELINES, 0.1 * ranks)
        assert told(sight) == (1, ranks, 1)


def test_a_trouble_is_told_at_once_though_a_scrape_failed() -> None:
    sight = Sight(None, 0.0)
    sight.take(report(), RANKS, PIPELINES, 1.0)
    lacking = report(ranks=3)
    lacking.troubles = (Trouble("mismatch", "order", "gpt-3", "0", "3"),)
    assert sight.take(lacking, RANKS, PIPELINES, 2.0)
    assert sight.report is not None
    assert sight.report.troubles == lacking.troubles
    assert told(sight) == (1, RANKS, PIPELINES)


def test_an_operator_that_starts_anew_says_nothing_of_what_it_has_not_wholly_seen() -> None:
    sight = Sight(None, 0.0)
    assert not sight.take(report(ranks=3), RANKS, PIPELINES, 1.0)
    assert sight.report is None
    assert sight.take(report(ranks=3), RANKS, PIPELINES, SIGHT_SECONDS)
    assert told(sight) == (1, 3, PIPELINES)


class Resumed(Monitor):
    """Has resumed a job, of which it has seen what a sight says."""

    def __init__(self, sight: Sight) -> None:
        super().__init__(lambda _: None)
        self._sight = sight

    def find(self, key: tuple[str, str]) -> WatchedJob | None:
        job = WatchedJob.__new__(WatchedJob)
        job.sight = self._sight
        return job


def condition(kind: str, status: str, reason: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "as it was"}


@pytest.mark.parametrize(
    ("seen", "generation", "reason", "repeats"),
    [
        (None, 3, "SourcesAnswer", True),
        (None, 2, "SourcesAnswer", False),
        (None, 3, "edited by a person", False),
        (JobReport(), 3, "SourcesAnswer", False),
    ],
)
def test_what_was_said_of_the_same_plan_is_said_again_until_as_much_is_seen(
    seen: JobReport | None, generation: int, reason: str, repeats: bool
) -> None:
    conditions = [condition("Observed", "True", reason), condition("Accepted", "False", "InvalidSpec")]
    status = {"plan": {"generation": generation}, "conditions": conditions}
    visit = Visit(("research", "gpt"), {"status": status}, Story())
    visit.story.say(Condition.OBSERVED, False, Reason.NO_MEASUREMENTS, "0 of 2 pipelines are seen")
    tell_as_before(visit, Resumed(Sight(seen, 0.0)), Generation())  # type: ignore[arg-type]
    assert visit.story.status_of(Condition.OBSERVED) is repeats
    assert Condition.ACCEPTED not in visit.story.told


class Generation:
    """A plan of generation 3."""

    generation = 3
