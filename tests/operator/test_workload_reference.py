"""Workloads of the user's own: seen wherever the cluster serves their kind, never written, and told in a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.job import WorkloadKind
from perseus_operator.workloads import State, ready_gpus, state_of

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map
from kinds import JOB_SET, KINDS, PYTORCH_JOB, ForeignKind

ROOT = Path(__file__).resolve().parents[2]
# The PerseusJob of these tests has 2 stages x 2 pipelines x 2 tensor-parallel ranks: one pod of 8 GPUs.
SHAPE = {"stages": 2, "pipelines": 2, "tensorParallel": 2, "microbatches": 4}


def condition(kind: str, status: str = "True", message: str = "") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": kind, "status": status, "reason": kind, "message": message}]}}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_workload_says_how_it_stands(kind: ForeignKind) -> None:
    word = WorkloadKind(kind.name)
    assert state_of(word, kind.document()) == (State.WANTED, "")
    assert state_of(word, {"spec": {**kind.spec, **kind.suspended}})[0] is State.SUSPENDED
    assert state_of(word, {**condition("Failed", message="out of retries")}) == (State.FAILED, "out of retries")
    assert state_of(word, condition("Failed", "False")) == (State.WANTED, "")
    if kind.finished:
        assert state_of(word, condition(kind.finished)) == (State.FINISHED, "")


def test_only_ready_pods_count_with_the_gpus_that_they_ask_for() -> None:
    assert ready_gpus([pod("a", ready=True), pod("b", ready=False)]) == 8
    assert ready_gpus([]) == 0


@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_workload_is_followed_from_its_absence_to_its_end(
    bare: BareCluster, operator: OperatorProcess, home: str, kind: ForeignKind
) -> None:
    if kind.module:
        bare.kubectl("apply", "--server-side", "-f", str(kind.crd_file()))
        eventually("the kind is served", lambda: bare.serves(kind.api_version, kind.plural))
    try:
        follow(bare, home, kind)
    finally:
        if kind.module:
            bare.kubectl("delete", "-f", str(kind.crd_file()), "--timeout=60s")


def follow(bare: BareCluster, home: str, kind: ForeignKind) -> None:
    bare.apply(home, profile_config_map(), referring_job(kind))
    wait_for(bare, home, "WorkloadMissing")
    bare.apply(home, kind.document())
    before = bare.find(kind.plural, home, "big")
    wait_for(bare, home, "PodsUnlabelled")
    bare.kubectl("create", "-n", home, "-f", "-", input_text=json.dumps(pod("rank-0", ready=True)))
    wait_for(bare, home, "PodsStarting")
    status = json.dumps({"status": pod("rank-0", ready=True)["status"]})
    bare.kubectl("patch", "pod", "rank-0", "-n", home, "--subresource=status", "--type=merge", "-p", status)
    wait_for(bare, home, "PodsRunning")
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, "train-frontier"))
    bare.optimise(home, "train")
    eventually("the plan", lambda: bare.plan(home, "train"))
    assert bare.find("job", home, "train") is None, "the operator starts no workload of its own"
    after = bare.find(kind.plural, home, "big")
    assert before is not None
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "it is only looked at"
    bare.kubectl("patch", kind.plural, "big", "-n", home, "--type=merge", "-p", json.dumps({"spec": kind.suspended}))
    eventually("the plan is withdrawn", lambda: bare.plan(home, "train") is None)
    wait_for(bare, home, "Suspended")


@pytest.mark.cluster
def test_the_example_is_taken_by_the_real_kinds(bare: BareCluster, home: str) -> None:
    bare.kubectl("apply", "--server-side", "-f", str(JOB_SET.crd_file()))
    try:
        eventually("the kind is served", lambda: bare.serves(JOB_SET.api_version, JOB_SET.plural))
        done = bare.kubectl("apply", "-k", str(ROOT / "examples" / "jobset"), "-n", home, "--dry-run=server")
        assert "jobset.jobset.x-k8s.io/gpt created" in done
        assert "perseusjob.perseus.energy/gpt created" in done
    finally:
        bare.kubectl("delete", "-f", str(JOB_SET.crd_file()), "--timeout=60s")


@pytest.mark.cluster
def test_a_kind_that_the_cluster_does_not_serve_is_a_condition(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    bare.apply(home, profile_config_map(), referring_job(PYTORCH_JOB))
    wait_for(bare, home, "WorkloadKindMissing")
    message = bare.conditions(home, "train")["WorkloadReady"]["message"]
    assert message == "this cluster serves no PyTorchJob (kubeflow.org): install it, or use spec.template"


def referring_job(kind: ForeignKind) -> dict[str, Any]:
    job = perseus_job(parallelism=SHAPE, workloadRef={"kind": kind.name, "name": "big"})
    del job["spec"]["template"]
    return job


def pod(name: str, ready: bool) -> dict[str, Any]:
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 8}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {names.LABEL_JOB: "train"}},
        "spec": {"containers": [container]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def wait_for(bare: BareCluster, home: str, reason: str) -> None:
    eventually(reason, lambda: bare.conditions(home, "train").get("WorkloadReady", {}).get("reason") == reason)
