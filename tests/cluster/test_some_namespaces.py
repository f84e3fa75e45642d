"""A release that serves one namespace: installed anew, a job there comes to its saving, nobody has a right too many.

tests/operator/test_rights.py compares rights granted and used over everything that the programs do. Here real pods do
what a small job needs, and what they ask for is read from the cluster's own audit log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from perseus_simulator.node import SimulatedNode
from product import (
    NAMESPACE,
    RELEASED_WITHIN_SECONDS,
    Training,
    conditions_of,
    processes_of_pod,
    restarts,
    status_of,
    wait_until,
)
from test_life_of_a_release import left_of_the_release

from harness import rights
from harness.audit import AuditLog
from testbed.folders import Folders
from testbed.installation import RELEASE, SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster
SERVED = "team-a"
ACCOUNTS = (rights.OPERATOR, rights.AGENT, rights.SELFTEST, rights.UNINSTALL)
# Measured savings are written once a minute at most.
SAVINGS_SECONDS = 180.0
# More than chance; the plan's prediction is 133.
SAVED_PERMILLE = 60


@pytest.fixture(scope="module")
def audit(installation: Installation) -> AuditLog:
    """What is asked of the API server once the release that served the whole cluster is gone."""
    installation.uninstall_chart()
    wait_until("every object is gone", lambda: not left_of_the_release(installation), 30)
    return AuditLog(Folders.from_environment().audit_log)


@pytest.fixture(scope="module")
def confined(installation: Installation, audit: AuditLog) -> Iterator[Installation]:
    """The release, installed for one namespace alone; for the whole cluster again afterwards."""
    installation.kubectl("create", "namespace", SERVED)
    try:
        installation.install_chart(f"watchNamespaces={{{SERVED}}}")
        yield installation
    finally:
        installation.uninstall_chart()
        installation.install_chart()
        installation.kubectl("delete", "namespace", SERVED, "--timeout=90s")


@pytest.fixture(scope="module")
def training(confined: Installation) -> Iterator[Training]:
    """A small job in the namespace that is served, and one of the same name elsewhere, older than it."""
    elsewhere = Training(confined, "small")
    elsewhere.delete()
    elsewhere.apply(suspend=True)
    small = Training(confined, "small", namespace=SERVED)
    small.apply()
    small.wait_for_plan()
    yield small
    small.delete()
    elsewhere.delete()


def test_a_job_in_the_named_namespace_comes_to_a_measured_saving(
    training: Training, confined: Installation, gpus: SimulatedNode
) -> None:
    own = [gpus.gpu(rank.gpu) for rank in training.sample().ranks.values()]
    wait_until("its clocks are set", lambda: all(gpu.locked_range() for gpu in own), 20)

    def saves() -> bool:
        savings = status_of(confined, training.name, SERVED).get("savings", {})
        return savings.get("source") == "Measured" and savings["permille"] > SAVED_PERMILLE

    wait_until("a measured saving", saves, SAVINGS_SECONDS)
    wait_until("it is well", lambda: conditions_of(confined, training.name, SERVED)["Ready"]["reason"] == "Running", 60)
    print(confined.kubectl("get", "pjob", "-n", SERVED))


def test_a_job_elsewhere_is_left_alone(training: Training, confined: Installation) -> None:
    job = json.loads(confined.kubectl("get", "pjob", training.name, "-n", NAMESPACE, "-o", "json"))
    assert "status" not in job
    assert "finalizers" not in job["metadata"]
    assert confined.perseus_objects(NAMESPACE, training.name) == [f"perseusjob.perseus.energy/{training.name}"]


def test_nobody_but_the_agents_has_a_right_in_the_whole_cluster(training: Training, confined: Installation) -> None:
    def names_of(kind: str) -> list[str]:
        found = confined.kubectl("get", kind, "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name")
        return sorted(each.rpartition("/")[2] for each in found.split())

    assert names_of("clusterrolebindings") == ["perseus-agent"]
    # The other two are for users: Kubernetes adds them to its own roles view, edit and admin.
    assert names_of("clusterroles") == ["perseus-agent", "perseus-edit", "perseus-view"]


def test_helm_test_is_content(training: Training, confined: Installation) -> None:
    assert "Phase:          Succeeded" in confined.helm("test", RELEASE, "--namespace", SYSTEM_NAMESPACE)


def test_uninstall_leaves_the_job_free_and_nothing_else(
    training: Training, confined: Installation, gpus: SimulatedNode
) -> None:
    own = [gpus.gpu(rank.gpu) for rank in training.wait_for_plan().ranks.values()]
    confined.uninstall_chart()
    wait_until("locks are gone", lambda: not any(gpu.locked_range() for gpu in own), RELEASED_WITHIN_SECONDS)
    wait_until("every object is gone", lambda: not left_of_the_release(confined), 30)
    job = json.loads(confined.kubectl("get", "pjob", training.name, "-n", SERVED, "-o", "json"))
    assert "finalizers" not in job["metadata"]
    assert [restarts(pod) for pod in training.pods()] == [0] * training.stages
    assert all(processes_of_pod(str(pod["metadata"]["uid"]), "train") for pod in training.pods()), "training goes on"


@pytest.mark.parametrize("account", ACCOUNTS)
def test_what_a_program_asked_for_is_what_it_was_granted(
    training: Training, confined: Installation, audit: AuditLog, account: str
) -> None:
    user = rights.user(account)
    granted = rights.granted(rights.rendered((SERVED,)), account)
    used = rights.used(audit.uses(user), granted)
    print("\n" + "\n".join(rights.table(account, granted, used)))
    assert audit.refusals(user) == []
    assert used != set()
    assert sorted(map(str, used - granted)) == [], "used, not granted"
    if account != rights.AGENT:
        assert {each.namespace for each in used} <= {SERVED, SYSTEM_NAMESPACE}
