"""The real API server with the CRD applied, spoken to directly: a dry run for each case, nothing stored."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.cluster import Cluster
from testbed.service import tls_context

sys.path.insert(0, str(Path(__file__).parent))

from constraints import CRD, referring_job, valid_job

Ask = Callable[..., str]


@pytest.fixture(scope="session")
def served_crd(cluster: Cluster) -> Cluster:
    """The cluster, serving the CRD of this checkout."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    cluster.kubectl("wait", "--for=condition=Established", "crd/perseusjobs.perseus.energy", "--timeout=30s")
    return cluster


@pytest.fixture(scope="session")
def ask(served_crd: Cluster) -> Ask:
    """Ask the API server; return "" when it accepts, else its refusal."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls_context(served_crd.site))
    )

    def send(method: str, path: str, document: dict[str, Any], content_type: str = "application/json") -> str:
        request = urllib.request.Request(
            f"{served_crd.site.api_url}/apis/perseus.energy/v1alpha1/namespaces/{path}",
            data=json.dumps(document).encode(),
            method=method,
            headers={"Content-Type": content_type},
        )
        try:
            with opener.open(request, timeout=30) as response:
                response.read()
        except urllib.error.HTTPError as error:
            if error.code not in (400, 422):
                raise
            return str(json.loads(error.read())["message"])
        return ""

    return send


@pytest.fixture(scope="module")
def stored(served_crd: Cluster) -> Iterator[str]:
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
