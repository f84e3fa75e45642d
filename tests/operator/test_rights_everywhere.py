"""Every control plane tells at its end what a program asked for beyond the chart's rights, whichever test asked.

That is how the whole suite looks at RBAC, so here is what it must find: a right that is not granted, one on another
object than the one that is meant, and requests in log files that were full meanwhile.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import rights
from harness.audit import AuditLog
from harness.client import Client, Refused
from harness.controlplane import SYSTEM, ControlPlane, RightsExceeded, running
from harness.objects import core_path

DEPLOYMENTS = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments"


@pytest.mark.cluster
def test_a_control_plane_names_each_request_that_nobody_granted(tmp_path: Path) -> None:
    with pytest.raises(RightsExceeded) as found:
        ask_too_much(tmp_path)
    assert str(found.value).removeprefix("asked for and not granted by the chart: ").split("; ") == [
        "perseus-agent: list secrets in team",
        "perseus-selftest: get deployments.apps another in perseus-system",
        "train-optimiser: get configmaps in team",
        "train-optimiser: patch configmaps another-frontier in team",
    ]


def ask_too_much(folder: Path) -> None:
    """Ask for what programs may, which is there or not, and for what they may not."""
    with running(folder) as plane:
        plane.client.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "train-optimiser"}}
        plane.client.post(core_path("serviceaccounts", "team"), account)
        accounts = (rights.OPERATOR, rights.AGENT, rights.SELFTEST)
        operator, agent, selftest = (client(plane, SYSTEM, each) for each in accounts)
        optimiser = client(plane, "team", "train-optimiser")
        operator.items(core_path("configmaps", "team"))
        selftest.get(f"{DEPLOYMENTS}/perseus-operator")
        for request in (
            lambda: agent.items(core_path("secrets", "team")),
            lambda: selftest.get(f"{DEPLOYMENTS}/another"),
            lambda: optimiser.get(core_path("configmaps", "team", "train-frontier")),
            lambda: optimiser.merge(core_path("configmaps", "team", "another-frontier"), {}),
        ):
            with pytest.raises(Refused, match="403"):
                request()


def test_what_was_asked_is_read_from_full_files_too_and_from_the_beginning_only(tmp_path: Path) -> None:
    path, full = tmp_path / "audit.log", tmp_path / "audit-2026-01-01T00-00-00.000.log"
    (tmp_path / "audit-2025-12-31T00-00-00.000.log").write_text(line("older"))
    path.write_text(line("before"))
    log = AuditLog(path)
    with path.open("a") as file:
        file.write(line("one") + line("administrator", user="admin"))
    path.rename(full)
    path.write_text(line("two") + line("not yet whole").rstrip("\n"))
    assert list(log.uses_by_user()) == [rights.user(rights.AGENT)]
    assert [use.name for use in log.uses(rights.user(rights.AGENT))] == ["one", "two"]
    path.unlink()
    full.unlink()
    path.write_text(line("new"))
    assert "new" in [use.name for use in log.uses(rights.user(rights.AGENT))], (
        "another cluster's log is read as a whole"
    )


def client(plane: ControlPlane, namespace: str, account: str) -> Client:
    """One that speaks with an account's token."""
    return Client(plane.url, plane.account_token(namespace, account), plane.certificate)


def line(name: str, user: str = rights.user(rights.AGENT)) -> str:
    """A request as the API server writes it down."""
    reference = {"resource": "configmaps", "namespace": SYSTEM, "name": name, "apiVersion": "v1"}
    event = {"verb": "get", "user": {"username": user}, "objectRef": reference, "responseStatus": {"code": 200}}
    return json.dumps(event, separators=(",", ":")) + "\n"
