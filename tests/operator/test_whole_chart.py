"""The chart with everything switched on is taken by a real API server that has the Prometheus operator's own CRDs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from harness.controlplane import ControlPlane, running
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


def test_it_is_removed_as_a_whole(installed: tuple[ControlPlane, Release]) -> None:
    _, release = installed
    release.uninstall()
    assert release.left() == []
