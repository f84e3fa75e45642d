"""What is told of ranks whose plan is not followed: one sentence, bounded, the same from answer to answer."""

from __future__ import annotations

from typing import Any

import pytest
from perseus_api.conditions import Condition, Reason
from perseus_operator.conditions import Story
from perseus_operator.monitor import Monitor, WatchedJob
from perseus_operator.prometheus import JobReport
from perseus_operator.sight import Sight
from perseus_operator.steps.telling import tell_applied
from perseus_operator.stragglers import JobWatch
from perseus_operator.transport import NoAnswer
from perseus_operator.troubles import MAXIMUM_OF_A_JOB, Trouble, read_troubles, told
from perseus_operator.visit import Visit

MISMATCH = Trouble("mismatch", "unfinished", "gpt-3", "0", "3")


def sample(**labels: str) -> dict[str, Any]:
    return {"metric": {"namespace": "research", "job": "gpt", **labels}, "value": [1.0, "1"]}


def answer(*samples: dict[str, Any]) -> dict[str, Any]:
    return {"resultType": "vector", "result": list(samples)}


def test_an_answer_in_another_order_is_the_same_news() -> None:
    rank = sample(
        __name__="perseus_rank_state", state="mismatch", reason="unfinished", pod="gpt-3", pipeline="0", stage="3"
    )
    pod = sample(__name__="perseus_pod_refused", reason="other_rank", pod="gpt-2")
    found = read_troubles(answer(rank, pod))
    assert found == read_troubles(answer(pod, rank, rank))
    assert found == {("research", "gpt"): (MISMATCH, Trouble("not_served", "other_rank", "gpt-2"))}


def test_what_is_no_answer_is_said() -> None:
    with pytest.raises(NoAnswer):
        read_troubles({"resultType": "matrix", "result": []})


@pytest.mark.parametrize(
    ("trouble", "reason", "words"),
    [
        (MISMATCH, Reason.PLAN_NOT_FOLLOWED, "pipeline 0 stage 3 (pod gpt-3) runs fewer instructions"),
        (Trouble("mismatch", "broken", "a", "0", "1"), Reason.PLAN_NOT_FOLLOWED, "left an iteration by an exception"),
        (Trouble("mismatch", "new", "a", "0", "1"), Reason.PLAN_NOT_FOLLOWED, "does something else than the plan"),
        (Trouble("not_served", "second_process", "a"), Reason.RANK_REFUSED, "train as the same rank"),
        (Trouble("not_served", "other_rank", "a"), Reason.RANK_REFUSED, "a rank that another pod is"),
        (Trouble("not_served", "no_gpu", "a"), Reason.RANK_REFUSED, "does not serve pod a: no_gpu"),
        (Trouble("interference", "", "a", "1", "2"), Reason.CLOCKS_REFUSED, "somebody else sets its GPU's clock"),
        (Trouble("refused", "no_permission", "a", "1", "2"), Reason.CLOCKS_REFUSED, "refuses clocks (no_permission)"),
    ],
)
def test_each_trouble_has_its_reason_and_sentence(trouble: Trouble, reason: Reason, words: str) -> None:
    found, sentence = told((trouble,))
    assert found is reason
    assert words in sentence


def test_only_the_first_is_named_and_the_others_counted() -> None:
    others = tuple(Trouble("mismatch", "order", f"gpt-{each}", "0", str(each)) for each in range(MAXIMUM_OF_A_JOB))
    assert "; 1 more:" in told(others[:2])[1]
    assert "and others:" in told(others)[1]


@pytest.mark.parametrize(
    ("troubles", "ranks", "applied"), [((), 4, "True"), ((MISMATCH,), 4, "False"), ((), 5, "Unknown")]
)
def test_the_condition_says_it_though_every_agent_has_the_plan_and_when_a_rank_is_there_twice(
    troubles: tuple[Trouble, ...], ranks: int, applied: str
) -> None:
    status, _, _ = told_of(JobReport(accepted={1: ranks}, active={1: ranks}, troubles=troubles))
    assert status == applied


@pytest.mark.parametrize(
    ("active", "reached", "reason", "words"),
    [
        ({0: 4}, 2, Reason.MEASURING_BASELINE, "generation 1 holds from iteration 3"),
        (
            {0: 4}, 50, Reason.WAITING_FOR_AGENTS,
            "generation 1 is at every agent; 4 of 4 ranks have begun no iteration since",
        ),
        (
            {0: 1, 1: 3}, None, Reason.WAITING_FOR_AGENTS,
            "generation 1 is at every agent; 1 of 4 ranks have begun no iteration since",
        ),
    ],
    ids=["baseline", "all agents restarted", "one agent restarted"],
)  # fmt: skip
def test_ranks_whose_agent_restarted_are_not_said_to_measure_a_baseline_that_is_over(
    active: dict[int, int], reached: int | None, reason: Reason, words: str
) -> None:
    watch = JobWatch(highest_iteration={} if reached is None else {0: reached})
    assert told_of(JobReport(accepted={1: 4}, active=active), watch) == ("False", reason, words)


class Watching(Monitor):
    """A monitor that has seen one report."""

    def __init__(self, report: JobReport, watch: JobWatch) -> None:
        super().__init__(lambda _: None)
        self.answered = True
        self._report, self._watch = report, watch

    def find(self, key: tuple[str, str]) -> WatchedJob | None:
        job = WatchedJob.__new__(WatchedJob)
        job.sight, job.watch = Sight(self._report, 0.0), self._watch
        return job


def told_of(report: JobReport, watch: JobWatch | None = None) -> tuple[str, Reason, str]:
    """What PlanApplied says of a report."""
    visit = Visit(("research", "gpt"), {}, Story())
    tell_applied(visit, Watching(report, watch or JobWatch()), Shape(), Generation())  # type: ignore[arg-type]
    return visit.story.told[Condition.PLAN_APPLIED]


class Shape:
    """A job of four ranks."""

    class parallelism:  # noqa: N801
        ranks = 4


class Generation:
    """A plan of generation 1."""

    generation, first_iteration = 1, 3
