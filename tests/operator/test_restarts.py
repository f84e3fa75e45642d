"""Training that ends, begins anew, or begins anew in another shape: what the operator makes of it, and what not.

The Job, StatefulSet, time-to-live and garbage collection controllers are Kubernetes' own; the kubelet is played.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names

from harness.client import Document
from harness.controlplane import free_port, running
from harness.objects import batch_path, core_path, job_path, perseus_job, profile_config_map

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually
from played import end_pods, running_pods

pytestmark = pytest.mark.cluster
CONTROLLERS = (
    "job-controller", "statefulset-controller", "ttl-after-finished-controller", "garbage-collector-controller",
)  # fmt: skip
# A workload that is not ours is looked at every quarter of a minute.
PATIENCE_SECONDS = 60.0
RANKS = 4  # 2 stages x 2 pipelines


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """A control plane with the controllers, and pods that run as soon as they are made."""
    with running(tmp_path_factory.mktemp("restarts"), controllers=CONTROLLERS) as plane, running_pods(plane):
        yield BareCluster(plane)


@pytest.fixture
def operator(cluster: BareCluster) -> Iterator[OperatorProcess]:
    """The operator, without a Prometheus: there is no report to wait for."""
    with OperatorProcess(cluster.plane.operator_kubeconfig, cluster.folder / "operator.log", free_port()) as process:
        yield process


@pytest.fixture
def home(cluster: BareCluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with cluster.own_namespace() as name:
        yield name


def test_training_that_has_ended_does_not_begin_again_when_its_time_to_live_is_over(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    begin(cluster, home, ttlSecondsAfterFinished=0)
    end_pods(cluster.plane, pods(cluster, home), "Succeeded")
    finished(cluster, home)


def test_training_that_ended_while_the_operator_was_away_does_not_begin_again(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    begin(cluster, home, ttlSecondsAfterFinished=0)
    operator.kill()
    end_pods(cluster.plane, pods(cluster, home), "Succeeded")
    eventually("the Job is finished", lambda: is_complete(cluster.find("job", home, "train")))
    operator.start()
    finished(cluster, home)


def finished(cluster: BareCluster, home: str) -> None:
    """The end is told, the Job goes, and a visit after that makes no other one."""
    wait_for(cluster, home, "TrainingFinished")
    eventually("the Job's time to live is over", lambda: cluster.find("job", home, "train") is None, PATIENCE_SECONDS)
    eventually("its pods are gone", lambda: not pods(cluster, home))
    visited(cluster, home, {"objective": {"type": "MinimumEnergy"}})
    assert cluster.find("job", home, "train") is None
    assert cluster.conditions(home, "train")["WorkloadReady"]["reason"] == "TrainingFinished"


def test_ranks_that_fail_all_together_are_there_again_as_if_one_had_failed(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    begin(cluster, home)
    failed = pods(cluster, home)
    assert len(failed) == RANKS
    end_pods(cluster.plane, failed, "Failed")
    before = {pod["metadata"]["uid"] for pod in failed}
    # Counted over the whole Job, four failures make Kubernetes wait for 80 s; one makes it wait for 10.
    eventually(
        "other pods train",
        lambda: len({pod["metadata"]["uid"] for pod in pods(cluster, home)} - before) == RANKS,
        PATIENCE_SECONDS,
    )
    wait_for(cluster, home, "PodsRunning")


def test_a_job_that_counts_failures_otherwise_keeps_counting_so(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    """As one does that an earlier version made: Kubernetes lets nobody change it."""
    pod = perseus_job()["spec"]["template"]["spec"]
    begin(cluster, home, template={"spec": {**pod, "restartPolicy": "OnFailure"}})
    visited(cluster, home, {"template": {"spec": {"restartPolicy": "Never"}}})
    told = cluster.conditions(home, "train")["WorkloadReady"]
    assert told["reason"] == "PodsRunning"
    assert told["message"].endswith("delete Job train to start training anew")
    made = cluster.find("job", home, "train")
    assert made is not None
    assert "backoffLimitPerIndex" not in made["spec"]


def test_a_changed_template_holds_from_the_next_training_on(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    begin(cluster, home)
    plan, first = cluster.plan(home, "train"), {pod["metadata"]["uid"] for pod in pods(cluster, home)}
    assert plan is not None
    limits = {"limits": {names.GPU_RESOURCE: 2}}
    container = {"name": "trainer", "image": "trainer:2", "resources": limits}
    visited(cluster, home, {"template": {"spec": {"containers": [container]}}})
    assert {pod["metadata"]["uid"] for pod in pods(cluster, home)} == first, "what runs keeps its template"
    message = cluster.conditions(home, "train")["WorkloadReady"]["message"]
    assert message.endswith("running pods keep the old one: delete Job train to start training anew")
    cluster.kubectl("delete", "job", "train", "-n", home, "--timeout=60s")
    eventually("pods of two GPUs train", lambda: len(of_image(cluster, home, "trainer:2")) == RANKS // 2)
    wait_for(cluster, home, "PodsRunning")
    eventually("the old pods are gone", lambda: len(pods(cluster, home)) == RANKS // 2)
    message = cluster.conditions(home, "train")["WorkloadReady"]["message"]
    assert message == "all 2 training pods are ready"
    now = cluster.plan(home, "train")
    assert now is not None
    assert now.variants == plan.variants
    assert now.generation >= plan.generation, "generations only grow"


def test_a_job_made_anew_in_another_shape_has_pods_and_plan_of_that_shape_alone(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    begin(cluster, home)
    old = (cluster.find("perseusjob", home, "train") or {})["metadata"]["uid"]
    cluster.kubectl("delete", "perseusjob", "train", "-n", home, "--timeout=60s")
    # At once: the garbage collector has not come to the children yet.
    begin(cluster, home, parallelism={"stages": 2, "pipelines": 1, "microbatches": 4})
    new = (cluster.find("perseusjob", home, "train") or {})["metadata"]["uid"]
    eventually("nothing is left of the first", lambda: owners(cluster, home) == {new}, PATIENCE_SECONDS)
    plan = cluster.plan(home, "train")
    assert plan is not None
    assert (plan.job.uid, len(plan.pipelines), len(pods(cluster, home))) == (new, 1, 2)
    assert new != old


@pytest.mark.parametrize("kind", ["Job", "StatefulSet"])
def test_an_elastic_workload_shrinks_and_grows_under_its_plan(
    cluster: BareCluster, operator: OperatorProcess, home: str, kind: str
) -> None:
    api, fields = {"Job": ("batch/v1", ("completions", "parallelism")), "StatefulSet": ("apps/v1", ("replicas",))}[kind]
    pod: Document = perseus_job()["spec"]["template"]
    pod["metadata"] = {"labels": {names.LABEL_JOB: "train"}}
    spec: Document = {**dict.fromkeys(fields, RANKS), "template": pod}
    if kind == "Job":
        pod["spec"]["restartPolicy"] = "Never"
        spec["completionMode"] = "Indexed"
    else:
        spec |= {"serviceName": "big", "selector": {"matchLabels": pod["metadata"]["labels"]}}
    cluster.apply(home, {"apiVersion": api, "kind": kind, "metadata": {"name": "big"}, "spec": spec})
    begin(cluster, home, template=None, workloadRef={"kind": kind, "name": "big"})
    plan = cluster.plan(home, "train")

    scale(cluster, home, kind, dict.fromkeys(fields, 2))
    wait_for(cluster, home, "PodsStarting")
    told = cluster.conditions(home, "train")["WorkloadReady"]["message"]
    assert told == f"the ready pods of {kind} big own 2 of 4 GPUs"
    assert cluster.plan(home, "train") == plan, "the pipeline that is left goes on as planned"

    scale(cluster, home, kind, dict.fromkeys(fields, RANKS))
    wait_for(cluster, home, "PodsRunning")
    assert cluster.plan(home, "train") == plan

    scale(cluster, home, kind, dict.fromkeys(fields, RANKS + 2))
    told = f"the ready pods of {kind} big own 6 GPUs, of which spec.parallelism describes 4: "
    eventually(
        "it is said that it outgrew its plan",
        lambda: cluster.conditions(home, "train")["WorkloadReady"]["message"].startswith(told),
        PATIENCE_SECONDS,
    )
    assert cluster.plan(home, "train") == plan


def test_what_was_told_of_a_workloads_end_stays_when_it_goes(
    cluster: BareCluster, operator: OperatorProcess, home: str
) -> None:
    pod: Document = perseus_job()["spec"]["template"]
    pod["metadata"] = {"labels": {names.LABEL_JOB: "train"}}
    pod["spec"]["restartPolicy"] = "Never"
    spec = {"completions": RANKS, "parallelism": RANKS, "completionMode": "Indexed", "template": pod}
    cluster.apply(home, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "big"}, "spec": spec})
    begin(cluster, home, template=None, workloadRef={"kind": "Job", "name": "big"})
    end_pods(cluster.plane, pods(cluster, home), "Succeeded")
    wait_for(cluster, home, "TrainingFinished")
    cluster.kubectl("delete", "job", "big", "-n", home, "--timeout=60s")
    visited(cluster, home, {"objective": {"type": "MinimumEnergy"}})
    assert cluster.conditions(home, "train")["WorkloadReady"]["reason"] == "TrainingFinished"
    # Another workload of that name is another training.
    cluster.apply(home, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "big"}, "spec": spec})
    wait_for(cluster, home, "PodsRunning")


def begin(cluster: BareCluster, home: str, **spec: Any) -> None:
    """Apply a job, and wait until its pods run and it has its plan."""
    job = perseus_job(**spec)
    job["spec"] = {key: value for key, value in job["spec"].items() if value is not None}
    cluster.apply(home, profile_config_map(), job)
    uid = (cluster.find("perseusjob", home, "train") or {})["metadata"]["uid"]

    def is_own(found: Document | None) -> bool:
        owners = found["metadata"].get("ownerReferences", []) if found else []
        return [each["uid"] for each in owners] == [uid]

    eventually(
        "the frontier's ConfigMap", lambda: is_own(cluster.find("configmap", home, "train-frontier")), PATIENCE_SECONDS
    )
    cluster.optimise(home, "train")
    wait_for(cluster, home, "PodsRunning")
    eventually("the plan", lambda: (plan := cluster.plan(home, "train")) is not None and plan.job.uid == uid)


def pods(cluster: BareCluster, home: str) -> list[Document]:
    """The training pods, those that are over included; not the optimisation pod."""
    selector = f"{names.LABEL_JOB}=train,{names.LABEL_COMPONENT}!=optimiser"
    return cluster.plane.client.items(core_path("pods", home), labelSelector=selector)


def of_image(cluster: BareCluster, home: str, image: str) -> list[Document]:
    return [pod for pod in pods(cluster, home) if pod["spec"]["containers"][0]["image"] == image]


def owners(cluster: BareCluster, home: str) -> set[str]:
    """UIDs of the PerseusJobs that Jobs, ConfigMaps and Services of the namespace belong to."""
    paths = (batch_path(home), core_path("configmaps", home), core_path("services", home))
    items = [each for path in paths for each in cluster.plane.client.items(path)]
    return {owner["uid"] for each in items for owner in each["metadata"].get("ownerReferences", [])}


def is_complete(job: Document | None) -> bool:
    conditions = ((job or {}).get("status") or {}).get("conditions", [])
    return any(each["type"] == "Complete" and each["status"] == "True" for each in conditions)


def scale(cluster: BareCluster, home: str, kind: str, numbers: dict[str, int]) -> None:
    patch = json.dumps({"spec": numbers})
    cluster.kubectl("patch", kind.lower(), "big", "-n", home, "--type=merge", "-p", patch)


def visited(cluster: BareCluster, home: str, change: dict[str, Any]) -> None:
    """Change the spec, and wait until a visit has seen it."""
    generation = cluster.plane.client.merge(job_path(home, "train"), {"spec": change})["metadata"]["generation"]

    def seen() -> bool:
        status = (cluster.find("perseusjob", home, "train") or {}).get("status") or {}
        return bool(status.get("observedGeneration") == generation)

    eventually("a visit", seen)


def wait_for(cluster: BareCluster, home: str, reason: str) -> None:
    """Wait for what is told of the workload, for the newest spec."""
    eventually(
        reason,
        lambda: cluster.conditions(home, "train").get("WorkloadReady", {}).get("reason") == reason,
        PATIENCE_SECONDS,
    )
