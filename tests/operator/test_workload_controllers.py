"""JobSets and TrainJobs that their own projects' controllers bring about, followed from their creation to their end.

The managers are the real ones, as is the Job controller; the kubelet is played: pods run as soon as they are there, and
what their containers do (failing, finishing) is written into their status.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.profile import parse_profile
from perseus_operator.profiles import profile_checksum
from perseus_planner import Pipeline, frontier

from harness.client import Document
from harness.controlplane import ROOT, free_port, running
from harness.objects import core_path, perseus_job, profile_config_map
from harness.workload_controllers import workload_controllers

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually
from played import end_pods, running_pods

pytestmark = pytest.mark.cluster
# 2 stages x 2 pipelines x 2 tensor-parallel ranks: two pods of four GPUs.
SHAPE = {"stages": 2, "pipelines": 2, "tensorParallel": 2, "microbatches": 4}
GPUS_PER_POD = 4
# A workload that waits is looked at every half a minute at the latest.
PATIENCE_SECONDS = 60.0
OF_JOB_SET = "jobset.sigs.k8s.io/jobset-name"
RUNTIME = "two-nodes"


@dataclass(frozen=True)
class Controlled:
    """A kind with its controller, and how a workload of it is written."""

    name: str
    path: str
    api_version: str

    def document(self, name: str, restarts: int) -> Document:
        """A workload of two pods that begins anew so often when one fails."""
        label = {names.LABEL_JOB: name}
        spec: Document
        if self.name == "JobSet":
            spec = job_set(restarts, label)
        else:
            node = {"targetJobs": [{"name": "node"}], "metadata": {"labels": label}}
            spec = {
                "runtimeRef": {"name": f"{RUNTIME}-{restarts}"},
                "trainer": {"numNodes": 2, "resourcesPerNode": {"limits": {names.GPU_RESOURCE: GPUS_PER_POD}}},
                "podTemplateOverrides": [node],
            }
        return {"apiVersion": self.api_version, "kind": self.name, "metadata": {"name": name}, "spec": spec}


JOB_SET = Controlled("JobSet", "jobsets", "jobset.x-k8s.io/v1alpha2")
TRAIN_JOB = Controlled("TrainJob", "trainjobs", "trainer.kubeflow.org/v1alpha1")


def job_set(restarts: int, label: dict[str, str]) -> Document:
    """The spec of a JobSet, or of a runtime's, of two Jobs with a pod each (a runtime says by itself how many pods)."""
    limits = {"limits": {names.GPU_RESOURCE: GPUS_PER_POD}}
    pod = {"restartPolicy": "Never", "containers": [{"name": "node", "image": "trainer", "resources": limits}]}
    job = {"backoffLimit": 0, "template": {"metadata": {"labels": label}, "spec": pod}}
    replicated = {"name": "node", "replicas": 2, "template": {"spec": job}}
    return {"failurePolicy": {"maxRestarts": restarts}, "replicatedJobs": [replicated]}


def runtime(restarts: int) -> Document:
    """What Trainer makes JobSets from."""
    spec = job_set(restarts, {})
    (replicated,) = spec["replicatedJobs"]
    replicated["replicas"] = 1
    replicated["template"]["metadata"] = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    return {
        "apiVersion": TRAIN_JOB.api_version,
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": f"{RUNTIME}-{restarts}", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 2, "torch": {"numProcPerNode": GPUS_PER_POD}}, "template": {"spec": spec}},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """A control plane with the controllers, and the operator."""
    folder = tmp_path_factory.mktemp("controllers")
    controllers = ["job-controller", "garbage-collector-controller"]
    with running(folder, controllers=controllers) as plane, workload_controllers(plane), running_pods(plane):
        for restarts in (0, 1):
            plane.kubectl("create", "-f", "-", input_text=json.dumps(runtime(restarts)))
        with OperatorProcess(plane.operator_kubeconfig, folder / "operator.log", free_port()):
            yield BareCluster(plane)


@pytest.fixture
def home(cluster: BareCluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with cluster.own_namespace() as name:
        yield name


@pytest.mark.parametrize("kind", [JOB_SET, TRAIN_JOB], ids=lambda kind: kind.name)
def test_a_workload_is_followed_through_suspension_restart_and_end(
    cluster: BareCluster, home: str, kind: Controlled
) -> None:
    life = Life(cluster, home, kind, "big")
    life.refer()
    life.wait_for("WorkloadMissing")
    life.create(restarts=1)
    life.wait_for("PodsRunning")
    cluster.optimise(home, "big")
    life.wait("the plan", lambda: cluster.plan(home, "big"))

    life.suspend(True)
    life.wait_for("Suspended")
    life.wait("the plan is withdrawn", lambda: cluster.plan(home, "big") is None)
    life.wait("the pods are gone", lambda: not life.pods())
    life.suspend(False)
    life.wait_for("PodsRunning")
    life.wait("the plan is back", lambda: cluster.plan(home, "big"))

    before = {pod["metadata"]["uid"] for pod in life.pods()}
    life.end_pods("Failed", 1)
    life.wait("both pods are new", lambda: len(life.ready_pods() - before) == 2)
    life.wait_for("PodsRunning")
    assert cluster.plan(home, "big") is not None
    assert cluster.find("jobset", home, "big")["status"]["restarts"] == 1  # type: ignore[index]

    life.end_pods("Succeeded", 2)
    life.wait_for("TrainingFinished")
    life.wait("the plan is withdrawn", lambda: cluster.plan(home, "big") is None)
    managers = {each["manager"] for each in life.workload()["metadata"]["managedFields"]}
    assert not any("perseus" in each for each in managers), "it is only looked at"


@pytest.mark.parametrize("kind", [JOB_SET, TRAIN_JOB], ids=lambda kind: kind.name)
def test_a_workload_that_fails_for_good_says_so_in_its_controllers_words(
    cluster: BareCluster, home: str, kind: Controlled
) -> None:
    life = Life(cluster, home, kind, "doomed")
    life.create(restarts=0)
    life.refer()
    life.wait_for("PodsRunning")
    life.end_pods("Failed", 1)
    life.wait_for("TrainingFailed")
    (failed,) = (each for each in life.workload()["status"]["conditions"] if each["type"] == "Failed")
    message = cluster.conditions(home, "doomed")["WorkloadReady"]["message"]
    assert message == f"{kind.name} doomed: {failed['message']}"


def test_the_example_is_brought_to_its_plan(cluster: BareCluster, home: str) -> None:
    cluster.kubectl("apply", "-n", home, "-k", str(ROOT / "examples" / "jobset"))
    life = Life(cluster, home, JOB_SET, "gpt")
    life.wait_for("PodsRunning")
    config_map = cluster.find("configmap", home, "gpt3-175b-a100-sxm")
    assert config_map is not None
    texts = config_map["data"][names.PROFILE_CSV_KEY], config_map["data"][names.PROFILE_HEADER_KEY]
    made = frontier(parse_profile(*texts), Pipeline(8, 12), plans=4, profile_checksum=profile_checksum(*texts))
    life.wait("the frontier's ConfigMap", lambda: cluster.find("configmap", home, "gpt-frontier"))
    cluster.optimise(home, "gpt", made)
    life.wait("the plan", lambda: cluster.plan(home, "gpt"))
    plan = cluster.plan(home, "gpt")
    assert plan is not None
    assert (len(plan.pipelines), len(plan.order)) == (2, 8)


@dataclass(frozen=True)
class Life:
    """One workload and the PerseusJob of its name."""

    cluster: BareCluster
    home: str
    kind: Controlled
    name: str

    def refer(self) -> None:
        """The user applies a profile and a PerseusJob."""
        job = perseus_job(self.name, parallelism=SHAPE, workloadRef={"kind": self.kind.name, "name": self.name})
        del job["spec"]["template"]
        self.cluster.apply(self.home, profile_config_map(), job)

    def create(self, restarts: int) -> None:
        """The user creates the workload."""
        self.cluster.apply(self.home, self.kind.document(self.name, restarts))

    def suspend(self, wanted: bool) -> None:
        """The user suspends the workload, or has it go on."""
        patch = json.dumps({"spec": {"suspend": wanted}})
        self.cluster.kubectl("patch", self.kind.path, self.name, "-n", self.home, "--type=merge", "-p", patch)

    def workload(self) -> dict[str, Any]:
        """Return the workload as it is."""
        found = self.cluster.kubectl(
            "get", self.kind.path, self.name, "-n", self.home, "-o", "json", "--show-managed-fields"
        )
        document: dict[str, Any] = json.loads(found)
        return document

    def pods(self) -> list[Document]:
        """Return its pods."""
        path = core_path("pods", self.home)
        return self.cluster.plane.client.items(path, labelSelector=f"{OF_JOB_SET}={self.name}")

    def ready_pods(self) -> set[str]:
        """Return the UIDs of those that train."""
        return {pod["metadata"]["uid"] for pod in self.pods() if pod.get("status", {}).get("phase") == "Running"}

    def end_pods(self, phase: str, number: int) -> None:
        """Containers end, as the kubelet would tell."""
        end_pods(self.cluster.plane, self.pods()[:number], phase)

    def wait_for(self, reason: str) -> None:
        """Wait for what the PerseusJob tells of its workload."""
        self.wait(
            reason,
            lambda: self.cluster.conditions(self.home, self.name).get("WorkloadReady", {}).get("reason") == reason,
        )

    def wait(self, what: str, condition: Any) -> None:
        """Wait for a condition."""
        eventually(what, condition, PATIENCE_SECONDS)
