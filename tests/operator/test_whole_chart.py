"""The chart with everything switched on is taken by a real API server that has the Prometheus operator's own CRDs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from harness.client import Refused
from harness.controlplane import ControlPlane, running
from harness.objects import core_path
from harness.release import Release
from harness.workload_controllers import module_folder
from testbed import versions
from testbed.definitions import define

pytestmark = pytest.mark.cluster
CRDS = ("podmonitors", "prometheusrules")
EVERYTHING = (
    "prometheus.url=https://prometheus.monitoring:9090", "prometheus.tls.caConfigMap=ca",
    "prometheus.basicAuth.secret=login", "prometheus.rules.enabled=true", "prometheus.podMonitors.enabled=true",
    "prometheus.annotations=false", "dashboards.enabled=true", "image.pullSecrets[0].name=registry",
    "operator.logFormat=json", "operator.tracing.endpoint=http://collector.monitoring:4318",
    "agent.runtimeClassName=nvidia", "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, Release]]:
    """The release with everything on."""
    with running(tmp_path_factory.mktemp("whole"), empty=True) as plane:
        module = f"github.com/prometheus-operator/prometheus-operator@v{versions.PROMETHEUS_OPERATOR}"
        folder = module_folder(module) / "example" / "prometheus-operator-crd"
        for name in CRDS:
            define(plane.kubectl, folder / f"monitoring.coreos.com_{name}.yaml")
        release = Release(plane)
        release.install(*EVERYTHING)
        yield plane, release


def test_monitors_and_rules_are_kept_as_they_were_written(installed: tuple[ControlPlane, Release]) -> None:
    """A field that the CRD does not know would have been dropped."""
    plane, release = installed
    for kind in CRDS:
        found = json.loads(plane.kubectl("get", kind, "-n", "perseus-system", "-o", "json"))["items"]
        assert found != []
    manifest = release.helm("get", "manifest", "perseus", "--namespace", "perseus-system")
    told = plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input_text=manifest)
    assert told.count("monitoring.coreos.com") == 3


def test_all_pods_but_the_agents_pass_pod_securitys_strictest_level(installed: tuple[ControlPlane, Release]) -> None:
    plane, release = installed
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": level}}
    plane.client.post("/api/v1/namespaces", namespace)
    refused = {}
    for name, spec in pods_of(release).items():
        spec.pop("runtimeClassName", None)  # This cluster has no such class.
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec}
        try:
            plane.client.call("POST", core_path("pods", "strict"), pod, {"dryRun": "All"})
        except Refused as refusal:
            refused[name] = str(refusal)
    assert set(pods_of(release)) == {"perseus-operator", "perseus-agent", "perseus-uninstall", "perseus-selftest"}
    assert list(refused) == ["perseus-agent"]
    assert 'violates PodSecurity "restricted' in refused["perseus-agent"]


def pods_of(release: Release) -> dict[str, dict[str, Any]]:
    """The pods that the release makes, its hooks' among them, by the name of what makes them."""
    parts = (release.helm("get", part, "perseus", "--namespace", "perseus-system") for part in ("manifest", "hooks"))
    documents = [each for part in parts for each in yaml.safe_load_all(part) if each]
    templates = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in documents
        if each["kind"] in ("Deployment", "DaemonSet", "Job")
    }
    return templates | {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "Pod"}


def test_it_is_removed_as_a_whole(installed: tuple[ControlPlane, Release]) -> None:
    _, release = installed
    release.uninstall()
    assert release.left() == []
