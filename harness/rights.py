"""Rights granted by the rendered chart against rights used by the audit log: neither may exceed the other.

Data-driven: what is granted is read from the chart as Helm renders it, what is used from what the API server saw. A
right that a program needs newly shows up as refused, one that nothing uses any more as unused.

The programs run with these accounts on every control plane of the harness and on the cluster, so that each of them
tells at its end what was asked for beyond them (`exceeded`).
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from perseus_api import names

from harness.audit import AuditLog, Use
from harness.client import Client
from testbed import binaries as programs
from testbed.errors import TestbedError
from testbed.execution import wait_until
from testbed.folders import Folders
from testbed.installation import CHART, RELEASE
from testbed.installation import SYSTEM_NAMESPACE as SYSTEM

Document = dict[str, Any]
OPERATOR, AGENT, UNINSTALL, SELFTEST = (f"{RELEASE}-{each}" for each in ("operator", "agent", "uninstall", "selftest"))
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
        name: of the one object on which it holds; empty: all of them.
    """

    group: str
    resource: str
    verb: str
    namespace: str
    name: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        kind = f"{self.resource}{f'.{self.group}' if self.group else ''}"
        return f"{self.verb} {kind}{f' {self.name}' if self.name else ''}{where}"


SERVED = "served"
_OPTIMISER = "-optimiser"
_PATIENCE_SECONDS = 30.0
# An admission plugin asks whether the user has it: no request, so the audit log does not tell.
FINALIZERS = "perseusjobs/finalizers"


@functools.cache
def rendered(watched: Sequence[str] = (), release: str = RELEASE) -> tuple[Document, ...]:
    """Return what the chart grants and to whom, as documents.

    Args:
        watched: the namespaces that the operator is to serve; none: all.
        release: its name, with which the names of all accounts begin.

    Raises:
        TestbedError: Helm refuses the chart.
    """
    program = programs.build(Folders.from_environment().cache, only={"helm"})["helm"]
    values = ["--set", f"watchNamespaces={{{','.join(watched)}}}"] if watched else []
    done = subprocess.run(
        [program, "template", release, CHART, "-n", SYSTEM, "--kube-version", "v1.36.1", *values],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise TestbedError(f"helm template failed: {done.stderr}")
    return tuple(each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in _KINDS)


def install(client: Client, documents: Sequence[Document]) -> None:
    """Create the accounts and their rights, and wait until they hold.

    Raises:
        TestbedError: they do not.
    """
    for document in documents:
        path = _PATHS[document["kind"]].format(namespace=document["metadata"].get("namespace", ""))
        client.apply(f"{path}/{document['metadata']['name']}", document, "helm")
    accounts = [each["metadata"]["name"] for each in documents if each["kind"] == "ServiceAccount"]
    for account in accounts:
        for right in sorted(granted(documents, account)):
            wait_until(
                f"{account} may {right}",
                lambda account=account, right=right: _holds(client, account, right),  # type: ignore[misc]
                timeout_seconds=_PATIENCE_SECONDS,
            )


def _holds(client: Client, account: str, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb,
        "namespace": right.namespace, "name": right.name,
    }  # fmt: skip
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user(account), "resourceAttributes": attributes},
    }
    return bool(client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"])


def granted(documents: Sequence[Document], account: str) -> set[Right]:
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
                    for name in rule.get("resourceNames", [""]):
                        found |= {Right(group, resource, verb, namespace, name) for verb in rule["verbs"]}
    return found


def folded(rights: Iterable[Right], watched: Sequence[str]) -> set[Right]:
    """Return rights with the namespaces that are served as one: what one job does not need there, another one does."""
    return {replace(each, namespace=SERVED) if each.namespace in watched else each for each in rights}


def _namespace_of(document: Document) -> str:
    return "" if document["kind"].startswith("Cluster") else str(document["metadata"].get("namespace", ""))


def used(uses: Iterable[Use], rights: set[Right]) -> set[Right]:
    """Return the rights that were used: the granted one that a use needed, or itself where none was granted."""
    found = set()
    for use in uses:
        here = Right(use.group, use.resource, use.verb, use.namespace)
        everywhere = replace(here, namespace="")
        needed = [replace(each, name=name) for each in (here, everywhere) for name in (use.name, "")]
        another = any(each.name and replace(each, name="") in (here, everywhere) for each in rights)
        missing = replace(here, name=use.name) if another else here
        found.add(next((each for each in needed if each in rights), missing))
    return found


def exceeded(log: AuditLog, documents: Sequence[Document]) -> list[str]:
    """Return what our programs asked for without having the right to it, each once with the first namespace.

    Whatever an account of the operator's namespace asks for must be granted there, to it. A granted right may be
    refused all the same: in the first moments of an API server, and while a release is installed or removed.
    """
    found: dict[str, str] = {}
    for asker, uses in log.uses_by_user().items():
        _, _, namespace, account = asker.split(":")
        if namespace == SYSTEM:
            had = granted(documents, account)
        elif account.endswith(_OPTIMISER):
            frontier = names.frontier_config_map_name(account.removesuffix(_OPTIMISER))
            had = {Right("", "configmaps", "patch", namespace, frontier)}
        else:
            continue
        for right in sorted(used(uses, had) - had):
            found.setdefault(f"{account}: {replace(right, namespace='')}", f"{account}: {right}")
    return sorted(found.values())


def user(account: str) -> str:
    """Return how the API server calls an account of the operator's namespace."""
    return f"system:serviceaccount:{SYSTEM}:{account}"


def table(account: str, rights: set[Right], uses: set[Right]) -> list[str]:
    """Return the comparison as lines."""
    lines = [f"{account}: {len(rights)} rights granted, {len(uses)} used"]
    for right in sorted(rights | uses):
        verdict = (
            "granted and used" if right in rights & uses else "granted, NOT USED" if right in rights else "REFUSED"
        )
        lines.append(f"  {right!s:<60} {verdict}")
    return lines
