"""PyTorchJobs that their own controller brings about: found by discovery, ranked by it, followed to their end.

One master and three workers of one GPU each. The kubelet is played (`played.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_trainer.environment import Rank

from harness.client import Document
from harness.controlplane import free_port, running
from harness.objects import core_path, perseus_job, profile_config_map
from harness.workload_controllers import pytorch_job_controller

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually
from played import end_pods, running_pods

pytestmark = pytest.mark.cluster
STAGES, PIPELINES = 2, 2
RANKS = STAGES * PIPELINES
OF_JOB = "training.kubeflow.org/job-name"
# A workload that is not there is looked for every half a minute at the latest.
PATIENCE_SECONDS = 60.0


def pytorch_job(name: str, restart: str) -> Document:
    """As docs/api.md has users write it: the label, and the shape; the rank is the controller's."""
    shape = {names.ENV_STAGES: STAGES, names.ENV_PIPELINES: PIPELINES, names.ENV_TENSOR_PARALLEL: 1}
    container = {
        "name": "pytorch",
        "image": "trainer",
        "env": [{"name": each, "value": str(number)} for each, number in shape.items()],
        "resources": {"limits": {names.GPU_RESOURCE: 1}},
    }
    template = {"metadata": {"labels": {names.LABEL_JOB: name}}, "spec": {"containers": [container]}}
    replicas = {
        kind: {"replicas": number, "restartPolicy": restart, "template": template}
        for kind, number in (("Master", 1), ("Worker", RANKS - 1))
    }
    spec = {"pytorchReplicaSpecs": replicas}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """A control plane with the controller, and the operator."""
    folder = tmp_path_factory.mktemp("pytorch")
    collector = ["garbage-collector-controller"]
    with (
        running(folder, controllers=collector) as plane,
        pytorch_job_controller(plane),
        running_pods(plane),
        OperatorProcess(plane.operator_kubeconfig, folder / "operator.log", free_port()),
    ):
        yield BareCluster(plane)


@pytest.fixture
def life(cluster: BareCluster) -> Iterator[Life]:
    """A namespace of the test's own."""
    with cluster.own_namespace() as name:
        yield Life(cluster, name)


def test_a_pytorch_job_is_followed_through_suspension_restart_and_end(cluster: BareCluster, life: Life) -> None:
    life.refer()
    life.wait_for("WorkloadMissing")
    life.create("ExitCode")
    life.wait_for("PodsRunning")
    assert life.told() == f"the ready pods of PyTorchJob big own all {RANKS} GPUs"
    cluster.optimise(life.home, "big")
    life.wait("the plan", life.has_plan)

    life.suspend(True)
    life.wait_for("Suspended")
    life.wait("the plan is withdrawn", lambda: not life.has_plan())
    life.wait("the pods are gone", lambda: not life.pods())
    life.suspend(False)
    life.wait_for("PodsRunning")
    life.wait("the plan is back", life.has_plan)

    before = {pod["metadata"]["uid"] for pod in life.pods()}
    killed = [pod for pod in life.pods() if pod["metadata"]["name"] == "big-worker-1"]
    end_pods(cluster.plane, killed, "Failed")
    life.wait("a new pod in its place", lambda: len(life.ready_pods() - before) == 1)
    life.wait_for("PodsRunning")
    assert life.has_plan()

    end_pods(cluster.plane, life.pods(), "Succeeded")
    life.wait_for("TrainingFinished")
    life.wait("the plan is withdrawn", lambda: not life.has_plan())
    managers = {each["manager"] for each in life.workload()["metadata"]["managedFields"]}
    assert not any("perseus" in each for each in managers), "it is only looked at"


def test_master_and_workers_are_each_a_place_of_the_pipelines(life: Life) -> None:
    life.refer()
    life.create("Never")
    life.wait_for("PodsRunning")
    places = {}
    for pod in life.pods():
        variables = {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0]["env"]}
        # What the chart's policy adds.
        given = {**variables, names.ENV_JOB: "big", names.ENV_NAMESPACE: life.home}
        rank = Rank.from_environment(given)
        places[pod["metadata"]["name"]] = (rank.pipeline, rank.stage, rank.tensor_rank)
    assert places == {
        "big-master-0": (0, 0, 0),
        "big-worker-0": (0, 1, 0),
        "big-worker-1": (1, 0, 0),
        "big-worker-2": (1, 1, 0),
    }


def test_a_pytorch_job_that_fails_for_good_says_so_in_its_controllers_words(cluster: BareCluster, life: Life) -> None:
    life.create("Never")
    life.refer()
    life.wait_for("PodsRunning")
    end_pods(cluster.plane, life.pods()[:1], "Failed")
    life.wait_for("TrainingFailed")
    assert life.told() == "PyTorchJob big: PyTorchJob big is failed because 1 Master replica(s) failed."


@dataclass(frozen=True)
class Life:
    """One PyTorchJob, and the PerseusJob that names it."""

    cluster: BareCluster
    home: str

    def refer(self) -> None:
        """The user applies a profile and a PerseusJob."""
        shape = {"stages": STAGES, "pipelines": PIPELINES, "microbatches": 4}
        job = perseus_job("big", parallelism=shape, workloadRef={"kind": "PyTorchJob", "name": "big"})
        del job["spec"]["template"]
        self.cluster.apply(self.home, profile_config_map(), job)

    def create(self, restart: str) -> None:
        """The user creates the PyTorchJob."""
        self.cluster.apply(self.home, pytorch_job("big", restart))

    def suspend(self, wanted: bool) -> None:
        """The user suspends it, or has it go on."""
        patch = json.dumps({"spec": {"runPolicy": {"suspend": wanted}}})
        self.cluster.kubectl("patch", "pytorchjob", "big", "-n", self.home, "--type=merge", "-p", patch)

    def workload(self) -> dict[str, Any]:
        """Return it as it is."""
        found = self.cluster.kubectl("get", "pytorchjob", "big", "-n", self.home, "-o", "json", "--show-managed-fields")
        document: dict[str, Any] = json.loads(found)
        return document

    def pods(self) -> list[Document]:
        """Return its pods."""
        return self.cluster.plane.client.items(core_path("pods", self.home), labelSelector=f"{OF_JOB}=big")

    def ready_pods(self) -> set[str]:
        """Return the UIDs of those that train."""
        return {pod["metadata"]["uid"] for pod in self.pods() if pod.get("status", {}).get("phase") == "Running"}

    def has_plan(self) -> bool:
        """Whether agents would find a plan."""
        return self.cluster.plan(self.home, "big") is not None

    def told(self) -> str:
        """Return what the PerseusJob says of its workload."""
        return self.cluster.conditions(self.home, "big")["WorkloadReady"]["message"]

    def wait_for(self, reason: str) -> None:
        """Wait for what the PerseusJob tells of its workload."""
        self.wait(
            reason,
            lambda: self.cluster.conditions(self.home, "big").get("WorkloadReady", {}).get("reason") == reason,
        )

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for a condition."""
        eventually(what, condition, PATIENCE_SECONDS)
