"""A release's life on control planes: this one's Kubernetes, and the oldest that is supported (`make test-older`).

helm installs, upgrades, rolls back and uninstalls; the operator runs with the chart's own account and serves a job
meanwhile. On nodes the same is shown by tests/cluster/test_life_of_a_release.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from perseus_api import names

from harness import scenario
from harness.client import Client, Document
from harness.controlplane import ROOT, SYSTEM
from harness.objects import core_path, job_path
from harness.release import Release
from harness.scenario import JOB, Life, Stage
from testbed import versions
from testbed.errors import TestbedError
from testbed.execution import wait_until
from testbed.installation import CHART, RELEASE

pytestmark = pytest.mark.cluster
NAMESPACE = "team"
WITHOUT_POLICY = "mutatingAdmissionPolicy.enabled=false"


@pytest.fixture(scope="module", params=["current", pytest.param("older", marks=pytest.mark.older)])
def is_older(request: pytest.FixtureRequest) -> bool:
    """Whether the oldest supported Kubernetes is meant."""
    return bool(request.param == "older")


@pytest.fixture(scope="module")
def stage(is_older: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """An empty control plane."""
    with scenario.stage(tmp_path_factory.mktemp("release"), older=is_older, empty=True) as found:
        yield found


@pytest.fixture(scope="module")
def release(stage: Stage, is_older: bool) -> Release:
    """The installed release; the operator may start."""
    found = Release(stage.plane)
    if is_older:
        with pytest.raises(TestbedError, match=f"set {WITHOUT_POLICY} and put the socket's volume into your pod"):
            found.install()
        assert found.helm("list", "--all-namespaces", "--short").strip() == "", "a refused release leaves nothing"
    found.install(*([WITHOUT_POLICY] if is_older else []))
    # The garbage collector looks for new kinds every half minute only.
    stage.plane.kill_part("manager")
    stage.plane.start_part("manager")
    stage.plane.credentials(stage.plane.folder / "proxied", url=stage.proxy.url)
    return found


@pytest.fixture(scope="module")
def life(stage: Stage, release: Release) -> Life:
    """A job that runs under its plan."""
    found = Life(stage, NAMESPACE)
    for step in ("create", "profile", "pods", "plan"):
        found.steps()[step]()
    return found


def test_the_control_plane_is_the_one_that_is_meant(stage: Stage, is_older: bool) -> None:
    wanted = versions.KUBERNETES_OLDER if is_older else versions.KUBERNETES
    assert f'"gitVersion": "v{wanted}"' in stage.plane.kubectl("get", "--raw", "/version")
    kinds = stage.plane.kubectl("api-resources", "--api-group=admissionregistration.k8s.io", "-o", "name")
    assert ("mutatingadmissionpolicies" in kinds) != is_older


def test_upgrade_and_rollback_go_on_with_the_plan(stage: Stage, release: Release, life: Life) -> None:
    before = plan(stage)
    stage.operator.kill()
    stage.plane.kubectl("apply", "-f", str(ROOT / "crds"))
    release.helm(
        "upgrade",
        RELEASE,
        str(CHART),
        "--namespace",
        SYSTEM,
        "--reset-then-reuse-values",
        "--set",
        "operator.logFormat=json",
    )
    stage.client.merge(job_path(NAMESPACE, JOB), {"spec": {"objective": {"type": "MinimumEnergy"}}})
    life.revive()
    life.wait_for_plan(2, straggling=False)
    upgraded = plan(stage)
    assert upgraded["metadata"]["uid"] == before["metadata"]["uid"], "the plan began anew"
    stage.operator.kill()
    release.helm("rollback", RELEASE, "--namespace", SYSTEM)
    life.settle()
    assert plan(stage) == upgraded


def test_a_pod_gets_its_socket_by_policy_or_by_the_documented_lines(stage: Stage, life: Life, is_older: bool) -> None:
    documented = documented_lines()
    written = admitted(stage.client, documented)
    assert names_of(written) == names_of(documented), "what is there is not added twice"
    if not is_older:
        # A policy takes a few seconds to come into force.
        bare = {"containers": [{"name": "trainer"}]}
        life.wait("the policy", lambda: names_of(admitted(stage.client, bare)) == names_of(documented))
        assert places_of(admitted(stage.client, bare)) == places_of(written)


def test_uninstall_leaves_nothing_but_the_job_which_then_leaves_nothing(
    stage: Stage, release: Release, life: Life
) -> None:
    assert release.left() != []
    stage.operator.kill()
    release.uninstall()
    assert release.left() == []
    job = stage.client.get(job_path(NAMESPACE, JOB))
    assert job is not None
    assert job["metadata"].get("finalizers", []) == []
    assert children(stage) != []
    stage.client.delete(job_path(NAMESPACE, JOB))
    # Not by the life's own wait, which would start the operator anew.
    wait_until("the job's children are collected", lambda: children(stage) == [], timeout_seconds=60)


def children(stage: Stage) -> list[str]:
    """What the operator made for the job, in the job's namespace."""
    kinds = "jobs,services,serviceaccounts,roles,rolebindings,configmaps"
    return stage.plane.kubectl("get", kinds, "-n", NAMESPACE, "-l", f"{names.LABEL_JOB}={JOB}", "-o", "name").split()


def plan(stage: Stage) -> Document:
    """The job's plan as the agents read it."""
    found = stage.client.get(core_path("configmaps", SYSTEM, names.plan_config_map_name(NAMESPACE, JOB)))
    assert found is not None
    return found


def documented_lines() -> dict[str, Any]:
    """The pod's spec that docs/install.md shows for older clusters."""
    text = (ROOT / "docs" / "install.md").read_text()
    (block,) = re.findall(r"^```yaml\n(spec:.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spec: dict[str, Any] = yaml.safe_load(block.replace("NAME-OF-THE-PERSEUSJOB", JOB))["spec"]
    return spec


def admitted(client: Client, spec: dict[str, Any]) -> dict[str, Any]:
    """The pod's spec as the API server would store it."""
    containers = [{"image": "trainer", **each} for each in spec["containers"]]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "rank", "labels": {names.LABEL_JOB: JOB}},
        "spec": {**spec, "containers": containers},
    }
    found = client.call("POST", core_path("pods", NAMESPACE), pod, {"dryRun": "All"})
    stored: dict[str, Any] = found["spec"]
    return stored


def names_of(spec: dict[str, Any]) -> list[str]:
    """Names of a pod's volumes, mounts and variables."""
    (container,) = spec["containers"]
    volumes = [each["name"] for each in spec.get("volumes", [])]
    mounts = [each["mountPath"] for each in container.get("volumeMounts", [])]
    return sorted(volumes) + sorted(mounts) + sorted(each["name"] for each in container.get("env", []))


def places_of(spec: dict[str, Any]) -> list[Any]:
    """Where a pod's volumes come from and go to, and what its plain variables say."""
    (container,) = spec["containers"]
    variables = {each["name"]: each["value"] for each in container["env"] if each["name"] != names.ENV_NAMESPACE}
    return [spec["volumes"], container["volumeMounts"], variables]
