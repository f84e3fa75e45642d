"""``helm uninstall`` while a job trains: no lock, no object of the release, and the training goes on."""

from __future__ import annotations

import json

import pytest
from perseus_api import names
from perseus_simulator.node import SimulatedNode
from product import NAMESPACE, Training, restarts, wait_until

from testbed.installation import RELEASE, SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster


def test_uninstall_gives_all_clocks_back_and_leaves_training_alone(
    training: Training, gpus: SimulatedNode, installation: Installation
) -> None:
    own = [gpus.gpu(rank.gpu) for rank in training.sample().ranks.values()]
    wait_until("a GPU is locked", lambda: any(gpu.locked_range() for gpu in own), 10)
    installation.helm("uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "2m")
    try:
        wait_until("locks are gone", lambda: not any(gpu.locked_range() for gpu in gpus.gpus), 5)
        assert [restarts(pod) for pod in training.pods()] == [0] * training.stages
        wait_until("every object is gone", lambda: not left_of_the_release(installation), 30)
        job = json.loads(installation.kubectl("get", "perseusjob", training.name, "-n", NAMESPACE, "-o", "json"))
        assert job["metadata"].get("finalizers", []) == [], "nobody is left to remove a finalizer"
    finally:
        installation.install_chart()


def left_of_the_release(installation: Installation) -> list[str]:
    """Everything that the release made and that should be gone."""
    kinds = (
        "pods,daemonsets,deployments,jobs,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,"
        "mutatingadmissionpolicies,mutatingadmissionpolicybindings"
    )
    release = installation.kubectl("get", kinds, "-A", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name")
    plans = installation.kubectl(
        "get", "configmaps", "-n", SYSTEM_NAMESPACE, "-l", f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}", "-o", "name"
    )
    return sorted((release + plans).split())
