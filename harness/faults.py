"""The fault table: what may happen to an operator in a year, each to one life of a job, and what is left afterwards.

A row says how often the fault struck and what differs from an undisturbed life. Some faults change the story for a
good reason; `ALLOWED` names those differences, and nothing else is.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from perseus_api import names

from harness.comparison import plans_of
from harness.controlplane import SYSTEM
from harness.objects import batch_path, core_path, job_path
from harness.proxy import Answer, Fault, Moment, Request
from harness.scenario import JOB, RANKS, SLOWDOWN, Life, Outcome, Stage
from harness.sweep import compare

_CUT_SECONDS = 1.0
_OUTAGE_SECONDS = 60.0
EDITS_PER_SECOND = 100
# By fault: differences that have a reason.
ALLOWED = {
    # The plan was made anew, and generations only grow: the same clocks, one generation later.
    "plan_damaged_by_a_person": r"generation 2 says what generation 1 said",
    "plan_deleted_by_a_person": r"generation 2 says what generation 1 said",
    # Each edit of the spec is a generation of the object.
    "hundred_edits_a_second": r"PerseusJob/train: .*(\.metadata\.generation|bservedGeneration|managedFields|straggler)",
    # The frontier was deleted: it was computed again, by a second Job.
    "children_deleted_by_a_person": r"Job/train-optimiser-HASH.* is too many",
    # A person's own field manager stays on what that person touched, and the Job's generation counts both edits.
    # The plan whose label was taken away comes back to the agents as the same generation.
    "conflicting_edits_by_a_person": (
        r"managedFields|Job/train: \.metadata\.generation|generation 1 follows generation 1"
    ),
}


@dataclass
class Row:
    """A row of the table.

    Attributes:
        fault: its name.
        struck: how often it struck.
        unit: what is counted.
        writes: of the operator during the life.
        seconds: of the life.
        found: differences from the undisturbed life that have no reason.
    """

    fault: str
    struck: int
    unit: str
    writes: int
    seconds: float
    found: list[str] = field(default_factory=list)


Disturbance = Callable[[Life, str], None]
Play = Callable[[Stage, Life], tuple[Outcome, int]]


def play(stage: Stage, calm: Outcome, name: str) -> Row:
    """Play a life under a fault of the table, and compare it with the undisturbed one."""
    unit, fault = FAULTS[name]
    stage.operator.kill()
    stage.proxy.clear()
    life = Life(stage, f"fault-{name.replace('_', '-')}"[:60])
    outcome, struck = fault(stage, life)
    writes = outcome.writes
    stage.proxy.clear()
    allowed = re.compile(ALLOWED.get(name, r"(?!)"))
    found = [each for each in compare(stage, calm, outcome, life) if not allowed.search(each)]
    return Row(name, struck, unit, writes, outcome.seconds, found)


def _every(period: int, answer: Answer, moment: Moment = Moment.BEFORE) -> Fault:
    count = 0

    def fault(request: Request, when: Moment) -> Answer | None:
        nonlocal count
        if when is not moment or (moment is Moment.AFTER and not request.write):
            return None
        count += 1
        return answer if count % period == 0 else None

    return fault


def _too_many_requests(stage: Stage, life: Life) -> tuple[Outcome, int]:
    stage.proxy.inject(_every(3, Answer(429, "TooManyRequests", 1)))
    return life.play(), stage.proxy.injected


def _server_errors(stage: Stage, life: Life) -> tuple[Outcome, int]:
    refused, unheard = _every(5, Answer(500, "InternalError")), _every(4, Answer(504, "Timeout"), Moment.AFTER)
    stage.proxy.inject(lambda request, when: refused(request, when) or unheard(request, when))
    return life.play(), stage.proxy.injected


def _watch_cut(stage: Stage, life: Life) -> tuple[Outcome, int]:
    stage.proxy.cut_watches(_CUT_SECONDS)
    return life.play(), stage.proxy.cuts


def _watch_too_old(stage: Stage, life: Life) -> tuple[Outcome, int]:
    stage.proxy.cut_watches(_CUT_SECONDS, gone=True)
    return life.play(), stage.proxy.cuts


def _etcd_restarted(stage: Stage, life: Life) -> tuple[Outcome, int]:
    def disturb(_: Life, step: str) -> None:
        if step in ("plan", "recovery"):
            stage.plane.kill_part("etcd")
            time.sleep(2.0)
            stage.plane.start_part("etcd")
            stage.plane.wait_until_ready()

    return life.play(disturb), 2


def _api_server_gone(stage: Stage, life: Life) -> tuple[Outcome, int]:
    def back() -> None:
        stage.plane.start_part("api")
        stage.plane.wait_until_ready()

    return _outage(stage, life, lambda: stage.plane.kill_part("api"), back)


def _api_server_hangs(stage: Stage, life: Life) -> tuple[Outcome, int]:
    return _outage(stage, life, lambda: stage.plane.hang_part("api"), lambda: stage.plane.resume_part("api"))


def _outage(stage: Stage, life: Life, away: Callable[[], None], back: Callable[[], None]) -> tuple[Outcome, int]:
    """The API server is away while a straggler appears, and the operator lives through it."""
    starts = 0

    def disturb(life: Life, step: str) -> None:
        nonlocal starts
        if step == "straggler":
            starts = stage.operator.starts
            away()
            stage.training.slow_down([life.key], 0, SLOWDOWN)
            time.sleep(_OUTAGE_SECONDS)
            back()

    outcome = life.play(disturb)
    if stage.operator.starts != starts and not outcome.trouble:
        outcome.trouble = "the operator ended: a restart brings no API server back"
    return outcome, round(_OUTAGE_SECONDS)


def _edits(stage: Stage, life: Life) -> tuple[Outcome, int]:
    client, namespace = stage.client, life.namespace
    own = {"labels": {names.LABEL_JOB: None, names.LABEL_MANAGED_BY: None}}

    def disturb(_: Life, step: str) -> None:
        if step != "straggler":
            return
        client.merge(core_path("services", namespace, JOB), {"spec": {"selector": {"app": "mine"}}, "metadata": own})
        client.merge(batch_path(namespace, JOB), {"spec": {"parallelism": 1, "suspend": True}})
        client.merge(f"{batch_path(namespace, JOB)}/status", {"status": {"ready": RANKS, "active": RANKS}})
        client.merge(core_path("configmaps", namespace, names.frontier_config_map_name(JOB)), {"metadata": own})
        plan = core_path("configmaps", SYSTEM, names.plan_config_map_name(namespace, JOB))
        client.merge(plan, {"metadata": {"labels": {names.LABEL_DOCUMENT: "mine"}}})
        client.merge(job_path(namespace, JOB), {"metadata": {"finalizers": None}})
        client.merge(f"{job_path(namespace, JOB)}/status", {"status": {"conditions": None, "plan": None}})

    return life.play(disturb), 7


def _damaged_plan(stage: Stage, life: Life) -> tuple[Outcome, int]:
    def disturb(life: Life, step: str) -> None:
        if step == "straggler":
            plan = core_path("configmaps", SYSTEM, names.plan_config_map_name(life.namespace, JOB))
            life.shift = 1
            stage.client.merge(plan, {"binaryData": {names.PLAN_KEY: "bWluZQ=="}})
            life.wait_for_plan(1, straggling=False)

    return life.play(disturb), 1


def _children_deleted(stage: Stage, life: Life) -> tuple[Outcome, int]:
    client, namespace = stage.client, life.namespace
    paths = [
        core_path("services", namespace, JOB),
        batch_path(namespace, JOB),
        core_path("configmaps", namespace, names.frontier_config_map_name(JOB)),
    ]

    def disturb(life: Life, step: str) -> None:
        if step != "straggler":
            return
        uids = {path: (client.get(path) or {})["metadata"]["uid"] for path in paths}
        for path in paths:
            client.delete(path)

        def is_new(path: str) -> bool:
            found = client.get(path)
            return found is not None and found["metadata"]["uid"] != uids[path]

        for path in paths:
            life.wait(f"{path} is made again", lambda path=path: is_new(path))  # type: ignore[misc]
        client.merge(f"{paths[1]}/status", {"status": {"ready": RANKS, "active": RANKS}})
        life.optimise(jobs=3)

    return life.play(disturb), len(paths)


def _plan_deleted(stage: Stage, life: Life) -> tuple[Outcome, int]:
    def disturb(life: Life, step: str) -> None:
        if step == "straggler":
            plan = core_path("configmaps", SYSTEM, names.plan_config_map_name(life.namespace, JOB))
            life.shift = 1
            stage.client.delete(plan)
            life.wait("the plan is back", lambda: plans_of(stage.client, life.namespace))
            life.wait_for_plan(1, straggling=False)

    return life.play(disturb), 1


def _deleted_while_down(stage: Stage, life: Life) -> tuple[Outcome, int]:
    def disturb(life: Life, step: str) -> None:
        if step == "delete":
            stage.operator.kill()
            stage.client.delete(job_path(life.namespace, JOB))
            time.sleep(2.0)
            assert plans_of(stage.client, life.namespace), "nobody was there to withdraw the plan"

    return life.play(disturb), 1


def _many_edits(stage: Stage, life: Life) -> tuple[Outcome, int]:
    made = 0
    with _editor(stage, life) as editor:

        def disturb(_: Life, step: str) -> None:
            if step == "profile":
                editor.begins.set()
            if step == "settle":
                editor.finish()

        outcome = life.play(disturb)
        made = editor.made
    return outcome, made


class _Editor(threading.Thread):
    """Edits a job EDITS_PER_SECOND times a second: now its annotations, now its spec."""

    def __init__(self, stage: Stage, life: Life) -> None:
        super().__init__(name="editor", daemon=True)
        self.made = 0
        self.begins, self.ends = threading.Event(), threading.Event()
        self._stage, self._path = stage, job_path(life.namespace, JOB)

    def run(self) -> None:
        self.begins.wait()
        begin = time.monotonic()
        while not self.ends.is_set():
            self._edit(self.made % 2)
            self.made += 1
            time.sleep(max(0.0, begin + self.made / EDITS_PER_SECOND - time.monotonic()))

    def finish(self) -> None:
        """Stop, and put everything back."""
        self.ends.set()
        self.join()
        patch = {"metadata": {"annotations": None}, "spec": {"straggler": {"enterPercent": 3}}}
        self._stage.client.merge(self._path, patch)

    def _edit(self, kind: int) -> None:
        patch = {"spec": {"straggler": {"enterPercent": 3 + self.made // 2 % 2}}}
        if kind:
            patch = {"metadata": {"annotations": {"example.com/edit": str(self.made)}}}  # type: ignore[dict-item]
        self._stage.client.merge(self._path, patch)


@contextmanager
def _editor(stage: Stage, life: Life) -> Iterator[_Editor]:
    editor = _Editor(stage, life)
    editor.start()
    try:
        yield editor
    finally:
        editor.ends.set()
        editor.begins.set()


FAULTS: dict[str, tuple[str, Play]] = {
    "too_many_requests": ("429 answers to every third request", _too_many_requests),
    "server_errors": ("5xx answers, half of them after the write was done", _server_errors),
    "watch_cut": ("watches cut after a second", _watch_cut),
    "watch_too_old": ("watches ended by 410", _watch_too_old),
    "etcd_restarted": ("kills of etcd", _etcd_restarted),
    "api_server_gone": ("seconds without an API server", _api_server_gone),
    "api_server_hangs": ("seconds in which the API server answered nothing", _api_server_hangs),
    "conflicting_edits_by_a_person": ("objects edited", _edits),
    "plan_damaged_by_a_person": ("plans overwritten", _damaged_plan),
    "children_deleted_by_a_person": ("children deleted", _children_deleted),
    "plan_deleted_by_a_person": ("plans deleted", _plan_deleted),
    "deleted_while_the_operator_is_down": ("jobs deleted", _deleted_while_down),
    "hundred_edits_a_second": ("edits of the job", _many_edits),
}
