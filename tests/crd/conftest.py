"""A real API server with the CRD applied, spoken to directly: a dry run for each case, nothing stored.

By default the cluster's; the oldest supported Kubernetes' by `make test-older`.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.client import Refused
from harness.controlplane import running
from testbed.cluster import Cluster
from testbed.definitions import define
from testbed.service import tls_context

sys.path.insert(0, str(Path(__file__).parent))

from constraints import CRD, referring_job, valid_job

Ask = Callable[..., str]
Send = Callable[[str, str, dict[str, Any], str], None]


@dataclass(frozen=True)
class Served:
    """An API server that serves the CRD of this checkout.

    Attributes:
        kubectl: runs kubectl.
        send: makes a request; raises `Refused`.
    """

    kubectl: Callable[..., str]
    send: Send


@pytest.fixture(scope="session", params=["current", pytest.param("older", marks=pytest.mark.older)])
def served_crd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The cluster, or a control plane of the oldest supported Kubernetes, with the CRD."""
    if request.param == "older":
        with running(tmp_path_factory.mktemp("older"), older=True) as plane:
            yield Served(
                plane.kubectl,
                lambda method, path, document, kind: plane.client.call(method, path, document, content_type=kind),
            )
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        define(cluster.kubectl, CRD)
        yield Served(cluster.kubectl, _sending_to(cluster))


@pytest.fixture(scope="session")
def ask(served_crd: Served) -> Ask:
    """Ask the API server; return "" when it accepts, else its refusal."""

    def send(method: str, path: str, document: dict[str, Any], content_type: str = "application/json") -> str:
        try:
            served_crd.send(method, f"/apis/perseus.energy/v1alpha1/namespaces/{path}", document, content_type)
        except Refused as refusal:
            if refusal.status not in (400, 422):
                raise
            return str(refusal)
        return ""

    return send


@pytest.fixture(scope="module")
def stored(served_crd: Served) -> Iterator[str]:
    """The namespace in which a valid job is stored, for what only an update can break."""
    namespace = "crd-constraints"
    served_crd.kubectl("create", "namespace", namespace)
    try:
        for job in (valid_job(), referring_job()):
            served_crd.kubectl("apply", "-n", namespace, "-f", "-", input_text=json.dumps(job))
        yield namespace
    finally:
        for name in ("valid", "referring"):
            unheld = '{"metadata":{"finalizers":null}}'
            served_crd.kubectl("patch", "perseusjob", name, "-n", namespace, "--type=merge", "-p", unheld)
        served_crd.kubectl("delete", "namespace", namespace, "--wait=false")


def _sending_to(cluster: Cluster) -> Send:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls_context(cluster.site))
    )

    def send(method: str, path: str, document: dict[str, Any], content_type: str) -> None:
        request = urllib.request.Request(
            f"{cluster.site.api_url}{path}",
            data=json.dumps(document).encode(),
            method=method,
            headers={"Content-Type": content_type},
        )
        try:
            with opener.open(request, timeout=30) as response:
                response.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, str(json.loads(error.read())["message"])) from error

    return send
