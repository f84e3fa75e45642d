"""Invariant 6 on a real API server: killed at any moment, the operator comes to the same objects, each once.

Nobody else writes here (no controllers), so that every write is the operator's or the test's.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names

from harness.controlplane import free_port

sys.path.insert(0, str(Path(__file__).parent))
from bare import (
    SYSTEM,
    BareCluster,
    OperatorProcess,
    eventually,
    perseus_job,
    profile_config_map,
)

pytestmark = pytest.mark.cluster


def settle(bare: BareCluster, namespace: str, job: str = "train") -> None:
    """Play the optimisation pod, and wait for the plan."""
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", namespace, f"{job}-frontier"))
    bare.optimise(namespace, job)
    eventually("the plan", lambda: bare.plan(namespace, job))
    eventually(
        "the status tells the plan",
        lambda: ((bare.find("perseusjob", namespace, job) or {}).get("status") or {}).get("plan"),
    )


def test_a_job_gets_its_children_its_conditions_and_its_plan(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    children = bare.children(home, "train")
    kinds = sorted(name.split("/")[0] for name in children)
    assert kinds == ["ConfigMap", "Job", "Job", "Role", "RoleBinding", "Service", "ServiceAccount", "plan"]
    conditions = bare.conditions(home, "train")
    assert list(conditions) == [
        "Accepted", "ProfileValid", "FrontierReady", "WorkloadReady", "PlanApplied", "Observed", "Straggling", "Ready",
    ]  # fmt: skip
    assert conditions["FrontierReady"]["status"] == "True"
    assert conditions["PlanApplied"]["message"].startswith("no Prometheus is configured")
    plan = bare.plan(home, "train")
    assert plan is not None
    assert (plan.generation, plan.first_iteration) == (1, 11)


def test_the_optimisation_pod_names_the_secrets_of_a_private_registry(bare: BareCluster, home: str) -> None:
    secrets = {"PERSEUS_IMAGE_PULL_SECRETS": "registry,mirror"}
    with OperatorProcess(bare.plane.operator_kubeconfig, bare.folder / "secrets.log", free_port(), **secrets):
        bare.apply(home, profile_config_map(), perseus_job())
        eventually("the optimisation Job", lambda: optimisers(bare, home))
    (job,) = optimisers(bare, home)
    assert job["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]


def optimisers(bare: BareCluster, home: str) -> list[dict[str, Any]]:
    jobs = json.loads(bare.kubectl("get", "jobs", "-n", home, "-o", "json"))["items"]
    return [each for each in jobs if each["spec"]["template"]["spec"]["containers"][0]["name"] == "optimiser"]


def test_a_restart_writes_nothing(bare: BareCluster, operator: OperatorProcess, home: str) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    time.sleep(3)  # Visits that the last writes asked for.

    def versions() -> dict[str, str]:
        found = {name: each["metadata"]["resourceVersion"] for name, each in bare.children(home, "train").items()}
        job = bare.find("perseusjob", home, "train")
        assert job is not None
        return {**found, "job": job["metadata"]["resourceVersion"]}

    before = versions()
    operator.kill()
    operator.start()
    time.sleep(8)
    assert versions() == before


def test_deletion_withdraws_the_plan_and_lets_the_job_go(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    bare.kubectl("delete", "perseusjob", "train", "-n", home, "--timeout=20s")
    assert bare.find("configmap", SYSTEM, names.plan_config_map_name(home, "train")) is None


def test_a_job_deleted_while_the_operator_is_away_is_let_go_later(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    operator.kill()
    bare.kubectl("delete", "perseusjob", "train", "-n", home, "--wait=false")
    assert bare.plan(home, "train") is not None
    operator.start()
    eventually("the job is gone", lambda: bare.find("perseusjob", home, "train") is None)
    assert bare.plan(home, "train") is None


def test_a_plan_whose_job_was_forced_away_is_swept(bare: BareCluster, operator: OperatorProcess, home: str) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    operator.kill()
    bare.kubectl("patch", "perseusjob", "train", "-n", home, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    bare.kubectl("delete", "perseusjob", "train", "-n", home, "--timeout=20s")
    operator.start()
    eventually("the orphan is gone", lambda: bare.plan(home, "train") is None)


def test_two_jobs_of_one_name_do_not_meet(bare: BareCluster, operator: OperatorProcess, home: str) -> None:
    other = f"{home}-too"
    bare.kubectl("create", "namespace", other)
    for namespace in (home, other):
        bare.apply(namespace, profile_config_map(), perseus_job())
    for namespace in (home, other):
        settle(bare, namespace)
    bare.kubectl("delete", "perseusjob", "train", "-n", other, "--timeout=20s")
    assert bare.plan(home, "train") is not None


def test_suspending_withdraws_the_plan_and_resuming_makes_a_newer_one(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    suspend = ("patch", "perseusjob", "train", "-n", home, "--type=merge", "-p")
    bare.kubectl(*suspend, '{"spec":{"suspend":true}}')
    eventually("the plan is withdrawn", lambda: bare.plan(home, "train") is None)
    workload = bare.find("job", home, "train")
    assert workload is not None
    assert workload["spec"]["suspend"] is True
    bare.kubectl(*suspend, '{"spec":{"suspend":false}}')
    eventually("the plan is back", lambda: bare.plan(home, "train"))
    plan = bare.plan(home, "train")
    assert plan is not None
    assert plan.generation == 2, "generations only grow"


def test_a_child_that_a_person_deleted_is_made_again(bare: BareCluster, operator: OperatorProcess, home: str) -> None:
    bare.apply(home, profile_config_map(), perseus_job())
    settle(bare, home)
    bare.kubectl("delete", "configmap", "-n", SYSTEM, names.plan_config_map_name(home, "train"))
    eventually("the plan is back", lambda: bare.plan(home, "train"))
    plan = bare.plan(home, "train")
    assert plan is not None
    assert plan.generation == 2, "generations only grow"


def test_somebody_elses_job_of_the_same_name_is_not_taken_over(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    container = {"name": "mine", "image": "mine"}
    pod = {"restartPolicy": "Never", "containers": [container]}
    theirs = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {"template": {"spec": pod}},
    }
    bare.apply(home, theirs, profile_config_map(), perseus_job())
    time.sleep(5)
    present = bare.find("job", home, "train")
    assert present is not None
    assert present["spec"]["template"]["spec"]["containers"][0]["name"] == "mine"
    assert names.LABEL_JOB not in (present["metadata"].get("labels") or {})


def test_a_template_that_kubernetes_refuses_is_told_in_its_own_words(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    wrong = perseus_job()
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Sometimes"
    bare.apply(home, profile_config_map(), wrong)
    eventually(
        "the refusal",
        lambda: bare.conditions(home, "train").get("WorkloadReady", {}).get("reason") == "TemplateRefused",
    )
    assert "Sometimes" in bare.conditions(home, "train")["WorkloadReady"]["message"]
