"""The doctor in the agent's own pod: says that all is well where it is, and names a right that was taken away."""

from __future__ import annotations

import json

import pytest

from testbed.installation import SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster
ROLE = "perseus-agent"


def ask(installation: Installation) -> str:
    """What the doctor says, whatever its exit status."""
    pod = installation.pods("agent")[0]
    command = "perseus-agent doctor; echo exit status $?"
    return installation.kubectl("exec", "-n", SYSTEM_NAMESPACE, pod, "-c", "agent", "--", "sh", "-c", command)


def test_an_installed_agent_is_well(installation: Installation) -> None:
    told = ask(installation)
    assert "Nothing is wrong. Nothing was changed." in told
    assert told.strip().endswith("exit status 0")
    assert "other pods are seen" in told
    for what in ("pods of this node", "plans", "ResourceSlices"):
        assert f"ok    API, {what}" in told


def test_a_right_that_is_missing_is_named_with_its_remedy(installation: Installation) -> None:
    role = json.loads(installation.kubectl("get", "clusterrole", ROLE, "-o", "json"))
    try:
        patch = json.dumps([{"op": "remove", "path": "/rules/1"}])
        installation.kubectl("patch", "clusterrole", ROLE, "--type=json", "-p", patch)
        told = ask(installation)
        assert "WRONG API, ResourceSlices: " in told
        assert told.strip().endswith("exit status 1")
    finally:
        patch = json.dumps([{"op": "add", "path": "/rules/1", "value": role["rules"][1]}])
        installation.kubectl("patch", "clusterrole", ROLE, "--type=json", "-p", patch)
