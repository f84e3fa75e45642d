"""The life of one job, step by step: create, profile, plan, straggler, recovery, replan, delete.

The steps wait for what the operator writes, play the optimisation pod, the Job controller and the agents, and start
the operator anew whenever it is found dead. What the steps leave behind is compared between a disturbed life and an
undisturbed one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from perseus_api import names
from perseus_api.plan import Plan

from harness.client import Client, Document, Refused
from harness.comparison import State, events_of, plans_of, state_of
from harness.controlplane import ControlPlane, free_port, running
from harness.objects import (
    PIPELINES,
    STAGES,
    batch_path,
    core_path,
    frontier_data,
    frontier_of,
    job_path,
    perseus_job,
    profile_config_map,
)
from harness.operator import OperatorProcess
from harness.prometheus_server import PrometheusServer
from harness.proxy import Proxy
from harness.training import Training

RANKS = STAGES * PIPELINES
# A forward of 10 ms: an iteration of 0.16 s, so that a life takes seconds.
FORWARD_SECONDS = 0.01
SCRAPE_SECONDS = 0.2
SLOWDOWN = 1.25
JOB = "train"
_STEP_SECONDS = 60.0
# Kubernetes' own collector: after an outage it pauses for up to a minute and more before it tries again.
_COLLECTED_SECONDS = 180.0
_QUIET_SECONDS = 1.5


class NotConverged(Exception):
    """A step was not reached in time; the text names it."""


@dataclass
class Stage:
    """Everything that a life is played on: control plane, proxy, operator, training."""

    plane: ControlPlane
    proxy: Proxy
    operator: OperatorProcess
    training: Training

    @property
    def client(self) -> Client:
        """Speaks as the administrator, past the proxy."""
        return self.plane.client


@dataclass
class Outcome:
    """What a life left behind.

    Attributes:
        living: before the job was deleted.
        after: when all was over.
        events: by reason and message.
        writes: how many the operator made.
        seconds: how long it took.
        trouble: the step that was not reached, if any.
        shift: how many plans there were beyond one for each step.
        plans: that reached the agents.
    """

    living: State = field(default_factory=dict)
    after: State = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    seconds: float = 0.0
    trouble: str = ""
    shift: int = 0
    plans: list[Plan] = field(default_factory=list)


@contextlib.contextmanager
def stage(folder: Path, older: bool = False, empty: bool = False, **variables: str) -> Iterator[Stage]:
    """A control plane with the garbage collector, a proxy, Prometheus, and an operator that is not yet started."""
    with (
        running(folder, controllers=["garbage-collector-controller"], older=older, empty=empty) as plane,
        Proxy(plane.url, plane.certificate) as proxy,
        Training(plane) as training,
        PrometheusServer(folder / "prometheus", free_port(), training.port, SCRAPE_SECONDS, rules=False) as prometheus,
    ):
        kubeconfig = folder / "proxied"
        if not empty:
            plane.credentials(kubeconfig, url=proxy.url)
        operator = OperatorProcess(
            kubeconfig, folder / "operator.log", free_port(), PERSEUS_PROMETHEUS_URL=prometheus.url, **variables
        )
        try:
            yield Stage(plane, proxy, operator, training)
        finally:
            operator.kill()


class Life:
    """One job from its creation to its end."""

    def __init__(self, stage: Stage, namespace: str) -> None:
        """Play it on a stage, in a namespace of its own.

        Attributes:
            shift: how many plans there were beyond one for each step.
        """
        self.stage = stage
        self.shift = 0
        self.namespace = namespace
        self.key = (namespace, JOB)
        self._client = stage.client

    def play(self, disturb: Callable[[Life, str], None] | None = None) -> Outcome:
        """Play all steps; before each, `disturb` may do something, given the step's name."""
        outcome = Outcome()
        begin = time.monotonic()
        try:
            for name, step in self.steps().items():
                if disturb is not None:
                    disturb(self, name)
                step()
                if name == "settle":
                    outcome.living = state_of(self._client, self.namespace)
            outcome.after = state_of(self._client, self.namespace)
        except NotConverged as error:
            outcome.trouble = str(error)
        outcome.events = events_of(self._client, self.namespace)
        outcome.writes = len(self.stage.proxy.writes)
        outcome.shift = self.shift
        outcome.plans = self.stage.training.history(self.key)
        outcome.seconds = time.monotonic() - begin
        self.stage.training.end(self.key)
        return outcome

    def steps(self) -> dict[str, Callable[[], None]]:
        """Return the steps in order."""
        return {
            "create": self.create,
            "profile": self.profile,
            "pods": self.pods,
            "plan": lambda: self.wait_for_plan(1, straggling=False),
            "straggler": self.straggler,
            "recovery": self.recovery,
            "replan": self.replan,
            "settle": self.settle,
            "delete": self.delete,
        }

    def create(self) -> None:
        """A user applies namespace, profile and job."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self._client.apply(f"/api/v1/namespaces/{self.namespace}", namespace, "user")
        self._client.post(core_path("configmaps", self.namespace), profile_config_map(seconds=FORWARD_SECONDS))
        self._client.post(job_path(self.namespace), perseus_job(JOB, accounting={"baselineIterations": 1}))
        self.revive()

    def profile(self) -> None:
        """The optimisation pod fills the frontier ConfigMap, once its Job and its access are there."""
        self.optimise(jobs=2)

    def optimise(self, jobs: int) -> None:
        """Do what the optimisation pod does, once so many batch Jobs are there."""
        path = core_path("configmaps", self.namespace, names.frontier_config_map_name(JOB))
        access = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.namespace}/rolebindings/{JOB}-optimiser"
        self.wait("the frontier's ConfigMap", lambda: self._client.get(path))
        self.wait("the optimisation pod's access", lambda: self._client.get(access))
        self.wait("the optimisation Job", lambda: len(self._client.items(batch_path(self.namespace))) == jobs)
        self._client.merge(path, {"binaryData": frontier_data(seconds=FORWARD_SECONDS)})

    def pods(self) -> None:
        """The Job controller starts the pods, and training begins."""
        path = batch_path(self.namespace, JOB)
        self.wait("the training Job", lambda: self._client.get(path))
        self._client.merge(f"{path}/status", {"status": {"ready": RANKS, "active": RANKS}})
        unlocked = frontier_of(seconds=FORWARD_SECONDS).fastest.iteration_seconds
        self.stage.training.begin(self.key, PIPELINES, RANKS, unlocked)

    def straggler(self) -> None:
        """Pipeline 0 is slow: the other gets the plan for its time."""
        self.stage.training.slow_down([self.key], 0, SLOWDOWN)
        self.wait_for_plan(2, straggling=True)

    def recovery(self) -> None:
        """It is well again: the fast plan comes back."""
        self.stage.training.slow_down([self.key], 0, 1.0)
        self.wait_for_plan(3, straggling=False)

    def replan(self) -> None:
        """The user chooses another objective."""
        self._client.merge(job_path(self.namespace, JOB), {"spec": {"objective": {"type": "MinimumEnergy"}}})
        self.wait_for_plan(4, straggling=False)

    def settle(self) -> None:
        """Nothing is written any more, and the operator lives."""
        before, since = -1, time.monotonic()
        deadline = since + _STEP_SECONDS
        while time.monotonic() - since < _QUIET_SECONDS or not self.stage.operator.runs:
            self.revive()
            if len(self.stage.proxy.writes) != before:
                before, since = len(self.stage.proxy.writes), time.monotonic()
            if time.monotonic() > deadline:
                raise NotConverged(f"the operator is still writing after {_STEP_SECONDS:.0f} s")
            time.sleep(0.1)

    def delete(self) -> None:
        """The user deletes the job: all of it goes."""
        self._client.delete(job_path(self.namespace, JOB))
        self.wait("the job is let go", lambda: self._client.get(job_path(self.namespace, JOB)) is None)
        self.wait("the plan is withdrawn", lambda: not plans_of(self._client, self.namespace))
        children = batch_path(self.namespace)
        self.wait("the children are collected", lambda: not self._client.items(children), _COLLECTED_SECONDS)
        self.wait("nothing but the profile is left", lambda: len(state_of(self._client, self.namespace)) == 1)

    def wait_for_plan(self, generation: int, straggling: bool) -> None:
        """Wait until agents run such a generation of the plan, or a later one, and the status tells it."""
        generation += self.shift
        status: Document = {}

        def told() -> bool:
            nonlocal status
            status = (self._client.get(job_path(self.namespace, JOB)) or {}).get("status") or {}
            conditions = {each["type"]: each for each in status.get("conditions", [])}
            found = int((status.get("plan") or {}).get("generation") or 0)
            if found < generation:
                return False
            return (
                conditions["PlanApplied"]["status"] == "True"
                and conditions["Straggling"]["status"] == str(straggling)
                and self.stage.training.active_generation(self.key) == found
            )

        try:
            self.wait(f"generation {generation} runs and is told", told)
        except NotConverged as error:
            active = self.stage.training.active_generation(self.key)
            raise NotConverged(f"{error}; generation {active} runs; {_story(status)}") from None
        self.shift += self.stage.training.active_generation(self.key) - generation

    def wait(self, what: str, condition: Callable[[], object], timeout_seconds: float = _STEP_SECONDS) -> None:
        """Wait for a condition, and start a dead operator anew.

        Raises:
            NotConverged: it was not met in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            with contextlib.suppress(Refused, OSError):
                if condition():
                    return
            self.revive()
            if time.monotonic() > deadline:
                raise NotConverged(f"{what}: not within {timeout_seconds:.0f} s")
            time.sleep(0.05)

    def revive(self) -> None:
        """Start the operator anew, as the kubelet does, if it is dead."""
        if not self.stage.operator.runs:
            self.stage.operator.start()


def _story(status: Document) -> str:
    """Return what a status tells, in a line."""
    conditions = [f"{each['type']}={each['status']} ({each['message']})" for each in status.get("conditions", [])]
    return f"status of generation {(status.get('plan') or {}).get('generation')}: {', '.join(conditions)}"
