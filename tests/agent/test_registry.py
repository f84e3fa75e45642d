"""Leases and what reaches them: a plan that changes while a lease is made is the one that the lease ends up with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_process import PLAN_NAME, make_plan, uid
from perseus_api.plan import Plan
from perseus_daemonset.baselines import Baselines
from perseus_daemonset.debts import Debts
from perseus_daemonset.journal import Journal
from perseus_daemonset.lease import RankKey
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pods import Pod
from perseus_daemonset.registry import Registry
from test_controller import UUID, RecordingGpu

KEY = RankKey("research", "gpt", 0, 0, 0, "gpt-0", UUID)
POD = Pod(uid(0), "research", "gpt-0", "Running", "gpt", "job-1", 0, None)


class Gpus:
    """One recording GPU."""

    def gpu(self, uuid: str) -> RecordingGpu:
        return RecordingGpu()


class RecordedLease:
    """A lease that remembers what it was offered."""

    def __init__(self, pod: Pod = POD) -> None:
        self.key, self.pod = KEY, pod
        self.offered: list[Plan | None] = []
        self.ended = False

    def begin(self) -> None:
        pass

    def offer(self, plan: Plan | None) -> None:
        self.offered.append(plan)

    def end(self) -> None:
        self.ended = True


class ChangingStore(PlanStore):
    """A store whose plan changes right after it was looked up for the first time."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self._change = change

    def find(self, namespace: str, job: str) -> Plan | None:
        found = super().find(namespace, job)
        change, self._change = self._change, None
        if change is not None:
            change(self)
        return found


def registry(folder: Path, plans: PlanStore) -> Registry:
    journal = Journal(folder)
    gpus: Any = Gpus()
    return Registry(gpus, journal, plans, Debts(journal, gpus, ()), Baselines(folder / "baselines"), 100.0)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda store: store.remove(PLAN_NAME), None),
        (lambda store: store.put(PLAN_NAME, ("research", "gpt"), make_plan(2).encode()), make_plan(2)),
    ],
)
def test_a_plan_that_changes_while_a_lease_is_made_comes_last(tmp_path: Path, change: Any, wanted: Plan | None) -> None:
    plans = ChangingStore(None)
    books = registry(tmp_path, plans)
    plans.put(PLAN_NAME, ("research", "gpt"), make_plan(1).encode())
    plans._change = change
    lease: Any = RecordedLease()
    books.serve(KEY, POD, os.getpid(), lambda *_: lease)
    assert lease.offered[-1] == wanted


def test_a_gpu_leased_to_another_pod_is_refused(tmp_path: Path) -> None:
    books = registry(tmp_path, PlanStore())
    first: Any = RecordedLease()
    books.serve(KEY, POD, os.getpid(), lambda *_: first)
    other = Pod(uid(1), "research", "gpt-1", "Running", "gpt", "job-1", 1, None)
    with pytest.raises(ValueError, match="leased to pod research/gpt-0"):
        books.serve(KEY, other, os.getpid(), lambda *_: RecordedLease(other))  # type: ignore[arg-type, return-value]
    assert not first.ended


def test_a_trainer_that_comes_again_takes_its_own_place(tmp_path: Path) -> None:
    books = registry(tmp_path, PlanStore())
    first: Any = RecordedLease()
    again: Any = RecordedLease()
    books.serve(KEY, POD, os.getpid(), lambda *_: first)
    books.serve(KEY, POD, os.getpid(), lambda *_: again)
    assert first.ended
    assert books.leases() == [again]
    books.finished(first)
    assert books.leases() == [again]


def test_books_of_a_pod_that_went_are_shown_for_a_while_but_not_beside_a_later_job_of_the_same_name(
    tmp_path: Path,
) -> None:
    books = registry(tmp_path, PlanStore())
    first: Any = RecordedLease()
    books.serve(KEY, POD, os.getpid(), lambda *_: first)
    books.pod_gone(POD)
    books.finished(first)
    assert [key for key, _ in books.closed_books()] == [KEY]
    same_job = replace(KEY, stage=1, pod="gpt-1", gpu="GPU-other")
    other_rank: Any = RecordedLease(Pod(uid(1), "research", "gpt-1", "Running", "gpt", "job-1", 1, None))
    books.serve(same_job, other_rank.pod, os.getpid(), lambda *_: other_rank)
    assert [key for key, _ in books.closed_books()] == [KEY], "a job that was resumed counts what it did before"
    later: Any = RecordedLease(Pod(uid(2), "research", "gpt-0", "Running", "gpt", "job-2", 0, None))
    books.serve(replace(KEY, pod="gpt-0-later", gpu="GPU-third"), later.pod, os.getpid(), lambda *_: later)
    assert books.closed_books() == []
