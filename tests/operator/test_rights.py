"""Each program's rights: what the chart grants is what it uses, neither more nor less, by the API server's audit log.

The operator lives a job's whole life, sees an optimisation fail, and finds an orphan; the agent watches; the
optimisation pod fills its ConfigMap; the uninstall hook takes everything back. The tables are printed (`pytest -s`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_operator.profiles import profile_checksum

from harness import rights, scenario
from harness.audit import AuditLog
from harness.controlplane import SYSTEM
from harness.objects import HEADER, batch_path, core_path, csv_of, job_path, perseus_job, profile_config_map
from harness.rights import Right
from harness.scenario import FORWARD_SECONDS, Life, Stage

pytestmark = pytest.mark.cluster
ACCOUNTS = {"operator": "perseus-operator", "agent": "perseus-agent", "uninstall": "perseus-uninstall"}
_AGENT = """
import sys, threading, time
from perseus_daemonset.cluster import ClusterWatch
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pods import PodTable
watch = ClusterWatch("node", sys.argv[1], PodTable(), PlanStore())
watch.start()
deadline = time.monotonic() + 30
while not watch.ready:
    assert time.monotonic() < deadline, "the agent saw nothing"
    time.sleep(0.1)
watch.resource_slices()
time.sleep(2)
"""
_OPTIMISER = """
import sys
from perseus_operator.optimiser import main
main.PROFILE_FOLDER = sys.argv[1]
sys.exit(main.main())
"""


@pytest.fixture(scope="module")
def chart() -> list[dict[str, Any]]:
    """What the chart grants."""
    return rights.rendered()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, chart: list[dict[str, Any]]) -> Iterator[Stage]:
    """A stage on which all programs have done everything that they do, with their own accounts."""
    folder = tmp_path_factory.mktemp("rights")
    with scenario.stage(folder) as stage:
        rights.install(stage.plane, chart)
        token = stage.plane.account_token(SYSTEM, ACCOUNTS["operator"])
        stage.plane.write_kubeconfig(folder / "proxied", stage.proxy.url, token, "operator")
        outcome = Life(stage, "life").play()
        assert not outcome.trouble, outcome.trouble
        _fail_an_optimisation(stage)
        _leave_a_job(stage)
        _run(stage, "agent", ["-c", _AGENT, SYSTEM])
        stage.operator.kill()
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "perseus-operator"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "operator"}},
                "template": {
                    "metadata": {"labels": {"app": "operator"}},
                    "spec": {"containers": [{"name": "operator", "image": "operator"}]},
                },
            },
        }
        stage.client.post(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", deployment)
        _run(stage, "uninstall", ["-m", "perseus_operator.main", "uninstall"])
        yield stage


@pytest.mark.parametrize("program", ACCOUNTS)
def test_a_program_uses_every_right_that_it_has_and_has_every_right_that_it_uses(
    lived: Stage, chart: list[dict[str, Any]], program: str
) -> None:
    account = ACCOUNTS[program]
    had = rights.granted(chart, account)
    log = AuditLog(lived.plane.audit_log, whole=True)
    user = f"system:serviceaccount:{SYSTEM}:{account}"
    used = rights.used(log.uses(user), had)
    print("\n" + "\n".join(rights.table(account, had, used)))
    assert log.refusals(user) == []
    assert sorted(map(str, used - had)) == [], "used, not granted"
    assert sorted(map(str, had - used - rights.unseen(had))) == [], "granted, not used"


def test_the_optimisation_pod_may_fill_its_own_configmap_and_nothing_else(lived: Stage, tmp_path: Path) -> None:
    namespace, account = "left", "train-optimiser"
    role = lived.client.get(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{account}")
    assert role is not None
    (rule,) = role["rules"]
    had = {Right("", "configmaps", verb, namespace) for verb in rule["verbs"]}
    assert rule["resourceNames"] == [names.frontier_config_map_name("train")]
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / names.PROFILE_CSV_KEY).write_text(csv_of(seconds=FORWARD_SECONDS))
    (profile / names.PROFILE_HEADER_KEY).write_text(HEADER)
    log = AuditLog(lived.plane.audit_log)
    environment = {
        "PERSEUS_SHAPE": json.dumps({"stages": 2, "microbatches": 4, "tensorParallel": 1, "schedule": "1F1B"}),
        "PERSEUS_PROFILE_CHECKSUM": profile_checksum(csv_of(seconds=FORWARD_SECONDS), HEADER),
        "PERSEUS_FRONTIER_CONFIG_MAP": names.frontier_config_map_name("train"),
        names.ENV_NAMESPACE: namespace,
    }
    token = lived.plane.account_token(namespace, account)
    _run(lived, account, ["-c", _OPTIMISER, str(profile)], token, **environment)
    time.sleep(0.5)
    user = f"system:serviceaccount:{namespace}:{account}"
    used = rights.used(log.uses(user), had)
    print("\n" + "\n".join(rights.table(account, had, used)))
    assert used == had


def _fail_an_optimisation(stage: Stage) -> None:
    """The operator reads the last words of the pod of an optimisation that failed."""
    client = stage.client
    client.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "failed"}})
    client.post(core_path("configmaps", "failed"), profile_config_map())
    client.post(job_path("failed"), perseus_job())
    life = Life(stage, "failed")
    jobs = batch_path("failed")
    life.wait("the optimisation Job", lambda: [each for each in client.items(jobs) if _is_optimiser(each)])
    (job,) = (each for each in client.items(jobs) if _is_optimiser(each))
    now = "2026-01-01T00:00:00Z"
    conditions = [
        {"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": now}
        for kind in ("FailureTarget", "Failed")
    ]
    status = {"conditions": conditions, "startTime": now, "failed": 1}
    client.merge(f"{jobs}/{job['metadata']['name']}/status", {"status": status})

    def told() -> bool:
        conditions = ((client.get(job_path("failed", "train")) or {}).get("status") or {}).get("conditions") or []
        return any(each["reason"] == "OptimisationFailed" for each in conditions)

    life.wait("the failure is told", told)
    client.delete(job_path("failed", "train"))
    life.wait("the job is gone", lambda: client.get(job_path("failed", "train")) is None)


def _leave_a_job(stage: Stage) -> None:
    """A job with a finalizer and a plan, for the uninstall hook."""
    life = Life(stage, "left")
    for step in ("create", "profile", "pods", "plan"):
        life.steps()[step]()


def _is_optimiser(job: dict[str, Any]) -> bool:
    return "-optimiser-" in str(job["metadata"]["name"])


def _run(stage: Stage, account: str, arguments: list[str], token: str = "", **environment: str) -> None:
    kubeconfig = stage.plane.folder / f"{account}-kubeconfig"
    token = token or stage.plane.account_token(SYSTEM, ACCOUNTS[account])
    stage.plane.write_kubeconfig(kubeconfig, token=token, user=account)
    variables = {
        "KUBECONFIG": str(kubeconfig),
        "PERSEUS_OPERATOR_NAMESPACE": SYSTEM,
        "PERSEUS_OPERATOR_DEPLOYMENT": "perseus-operator",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
