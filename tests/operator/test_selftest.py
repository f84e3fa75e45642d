"""What ``helm test`` says: good news, or one sentence with the remedy; dry runs ask a real API server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from perseus_operator.selftest import ENV_DAEMON_SET, SelfTestFailed, agents_are_ready, operator_is_available

from harness import rights
from testbed.installation import RELEASE

sys.path.insert(0, str(Path(__file__).parent))
from bare import SYSTEM, BareCluster


def daemon_set(wanted: int, ready: int, **selector: str) -> dict[str, Any]:
    template = {"spec": {"nodeSelector": selector}}
    return {
        "spec": {"template": template},
        "status": {"desiredNumberScheduled": wanted, "numberReady": ready},
    }


def test_a_ready_installation_is_good_news() -> None:
    assert operator_is_available({"status": {"availableReplicas": 1}}) == "the operator is available"
    assert agents_are_ready(daemon_set(3, 3)) == "3 of 3 agents are ready"


@pytest.mark.parametrize("deployment", [None, {}, {"status": {"availableReplicas": 0}}])
def test_an_operator_without_a_ready_pod_fails(deployment: dict[str, Any] | None) -> None:
    with pytest.raises(SelfTestFailed, match=r"install the chart again|kubectl describe"):
        operator_is_available(deployment)


def test_agents_that_are_not_ready_are_counted() -> None:
    with pytest.raises(SelfTestFailed, match=r"2 of 3 agents are ready: run `perseus-agent doctor`"):
        agents_are_ready(daemon_set(3, 2))


def test_a_node_selector_that_chooses_nothing_is_named() -> None:
    with pytest.raises(SelfTestFailed, match=r"no node is chosen for an agent \(gpu=yes\)"):
        agents_are_ready(daemon_set(0, 0, gpu="yes"))
    with pytest.raises(SelfTestFailed, match="is not there"):
        agents_are_ready(None)


@pytest.mark.cluster
def test_the_command_asks_the_api_server_and_creates_nothing(bare: BareCluster) -> None:
    bare.show_release(RELEASE)
    try:
        done = run(bare)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "the operator is available",
            "1 of 1 agents are ready",
            "the API server takes a right PerseusJob",
            "the API server refuses a wrong PerseusJob",
        ]
        assert bare.find("perseusjob", SYSTEM, "perseus-selftest") is None
        bare.kubectl("delete", "deployment", f"{RELEASE}-operator", "-n", SYSTEM)
        done = run(bare)
        assert done.returncode == 1
        assert "the operator's Deployment is not there" in done.stderr
    finally:
        bare.kubectl("delete", "deployments,daemonsets", "--all", "-n", SYSTEM)


def run(bare: BareCluster) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "KUBECONFIG": str(bare.plane.credentials(bare.folder / "selftest-kubeconfig", rights.SELFTEST)),
        "PERSEUS_OPERATOR_NAMESPACE": SYSTEM,
        "PERSEUS_OPERATOR_DEPLOYMENT": f"{RELEASE}-operator",
        ENV_DAEMON_SET: f"{RELEASE}-agent",
    }
    return subprocess.run(
        [sys.executable, "-m", "perseus_operator.main", "selftest"],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
