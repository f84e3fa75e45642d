"""Whoever has Kubernetes' own role edit or view in a namespace has the same for PerseusJobs, and nothing more."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from product import wait_until

from testbed.installation import Installation

pytestmark = pytest.mark.cluster
NAMESPACE = "users"
MAY = {
    "view": {"get": True, "list": True, "watch": True, "create": False, "patch": False, "delete": False},
    "edit": {"get": True, "list": True, "watch": True, "create": True, "patch": True, "delete": True},
}


@pytest.fixture(scope="module")
def users(installation: Installation) -> Iterator[Installation]:
    """A namespace in which a user named for each role has it."""
    installation.kubectl("create", "namespace", NAMESPACE)
    for role in MAY:
        installation.kubectl(
            "create", "rolebinding", role, "-n", NAMESPACE, f"--clusterrole={role}", f"--user=a-{role}"
        )
    yield installation
    installation.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")


@pytest.mark.parametrize("role", MAY)
def test_a_users_role_holds_for_perseusjobs(users: Installation, role: str) -> None:
    def rights() -> dict[str, bool]:
        return {verb: may(users, verb, "perseusjobs.perseus.energy", role) for verb in MAY[role]}

    wait_until("the roles are put together", lambda: rights() == MAY[role], 30)
    assert may(users, "get", "perseusjobs.perseus.energy/status", role)
    assert not may(users, "patch", "perseusjobs.perseus.energy/status", role), "the operator's alone"
    assert not may(users, "get", "perseusjobs.perseus.energy", role, namespace="default")


def may(installation: Installation, verb: str, resource: str, role: str, namespace: str = NAMESPACE) -> bool:
    """What the API server says of a user's right."""
    plural, _, subresource = resource.partition("/")
    name, _, group = plural.partition(".")
    attributes = {
        "namespace": namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource,
    }  # fmt: skip
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"a-{role}", "resourceAttributes": attributes},
    }
    told = installation.kubectl("create", "-o", "json", "-f", "-", input_text=json.dumps(review))
    return bool(json.loads(told)["status"]["allowed"])
