"""Rights granted by the rendered chart against rights used by the audit log: neither may exceed the other.

Data-driven: what is granted is read from the chart as Helm renders it, what is used from what the API server saw. A
right that a program needs newly shows up as refused, one that nothing uses any more as unused.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.audit import Use
from harness.controlplane import ROOT, SYSTEM, ControlPlane
from testbed import binaries as programs
from testbed.errors import TestbedError
from testbed.folders import Folders

CHART = ROOT / "charts" / "perseus-operator"
RELEASE = "perseus"
_KINDS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
_PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource.

    Attributes:
        group: API group; empty: core.
        resource: plural, with the subresource after a slash.
        verb: as RBAC calls it.
        namespace: where it holds; empty: everywhere.
    """

    group: str
    resource: str
    verb: str
    namespace: str

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}{where}"


SERVED = "served"
# An admission plugin asks whether the user has it: no request, so the audit log does not tell.
FINALIZERS = "perseusjobs/finalizers"


def rendered(helm: Path | None = None, watched: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what the chart grants and to whom, as documents.

    Args:
        helm: the program; None: the testbed's.
        watched: the namespaces that the operator is to serve; none: all.

    Raises:
        TestbedError: Helm refuses the chart.
    """
    program = helm or programs.build(Folders.from_environment().cache, only={"helm"})["helm"]
    values = ["--set", f"watchNamespaces={{{','.join(watched)}}}"] if watched else []
    done = subprocess.run(
        [program, "template", RELEASE, CHART, "-n", SYSTEM, "--kube-version", "v1.36.1", *values],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise TestbedError(f"helm template failed: {done.stderr}")
    return [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in _KINDS]


def install(plane: ControlPlane, documents: Iterable[dict[str, Any]]) -> None:
    """Create the accounts and their rights."""
    for document in documents:
        path = _PATHS[document["kind"]].format(namespace=document["metadata"].get("namespace", ""))
        plane.client.apply(f"{path}/{document['metadata']['name']}", document, "helm")


def granted(documents: list[dict[str, Any]], account: str) -> set[Right]:
    """Return the rights of a service account of the operator's namespace."""
    by_name = {(each["kind"], _namespace_of(each), each["metadata"]["name"]): each for each in documents}
    found = set()
    for binding in documents:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if not any(each["name"] == account and each.get("namespace") == SYSTEM for each in binding["subjects"]):
            continue
        # A namespace of the cluster-wide binding is none.
        namespace = _namespace_of(binding)
        role = by_name[binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"]]
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found |= {Right(group, resource, verb, namespace) for verb in rule["verbs"]}
    return found


def folded(rights: Iterable[Right], watched: Sequence[str]) -> set[Right]:
    """Return rights with the namespaces that are served as one: what one job does not need there, another one does."""
    return {replace(each, namespace=SERVED) if each.namespace in watched else each for each in rights}


def _namespace_of(document: dict[str, Any]) -> str:
    return "" if document["kind"].startswith("Cluster") else str(document["metadata"].get("namespace", ""))


def used(uses: Iterable[Use], rights: set[Right]) -> set[Right]:
    """Return the rights that were used: the granted one that a use needed, or itself where none was granted."""
    found = set()
    for use in uses:
        everywhere = Right(use.group, use.resource, use.verb, "")
        here = Right(use.group, use.resource, use.verb, use.namespace)
        found.add(here if here in rights else everywhere if everywhere in rights else here)
    return found


def table(account: str, rights: set[Right], uses: set[Right]) -> list[str]:
    """Return the comparison as lines."""
    lines = [f"{account}: {len(rights)} rights granted, {len(uses)} used"]
    for right in sorted(rights | uses):
        verdict = (
            "granted and used" if right in rights & uses else "granted, NOT USED" if right in rights else "REFUSED"
        )
        lines.append(f"  {right!s:<60} {verdict}")
    return lines
