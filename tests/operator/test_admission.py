"""Which pods the chart's MutatingAdmissionPolicy changes, and what it leaves as it is, on the real API server.

Pods are admitted without being stored. That a pod without any of this trains with it is shown where pods run
(tests/cluster), and that the documented lines for older clusters are the same in test_release.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from perseus_api import names

from harness.client import Document
from harness.controlplane import SYSTEM, ControlPlane, running
from harness.objects import batch_path, core_path
from harness.release import Release
from harness.rights import CHART, RELEASE
from testbed.execution import wait_until

pytestmark = pytest.mark.cluster
OPEN, BASELINE, RESTRICTED = "open", "baseline", "restricted"
LABELLED = {names.LABEL_JOB: "train"}
TRAINER = {"name": "trainer", "image": "trainer"}
VOLUME = {"name": "perseus-socket", "hostPath": {"path": names.SOCKET_FOLDER, "type": "DirectoryOrCreate"}}
MOUNT = {"name": "perseus-socket", "mountPath": names.SOCKET_FOLDER, "readOnly": True}
VARIABLES = {names.ENV_SOCKET: names.SOCKET_PATH, names.ENV_JOB: "train", names.ENV_NAMESPACE: OPEN}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the chart's policy in force, and namespaces of three Pod Security levels."""
    with running(tmp_path_factory.mktemp("admission")) as found:
        chart = ("-s", "templates/admission-policy.yaml", "-n", SYSTEM, "--kube-version", "v1.36.1")
        found.kubectl("apply", "-f", "-", input_text=Release(found).helm("template", RELEASE, str(CHART), *chart))
        for name in (OPEN, BASELINE, RESTRICTED):
            found.kubectl("create", "namespace", name)
        for name in (BASELINE, RESTRICTED):
            found.kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={name}")
        # A policy takes a few seconds to come into force, and nothing says when.
        wait_until("the policy", lambda: "volumes" in admitted(found, LABELLED, [TRAINER]), timeout_seconds=30)
        yield found


def test_a_pod_of_a_job_gets_the_socket_and_the_variables(plane: ControlPlane) -> None:
    spec = admitted(plane, LABELLED, [TRAINER])
    (container,) = spec["containers"]
    assert spec["volumes"] == [VOLUME]
    assert container["volumeMounts"] == [MOUNT]
    assert variables_of(container) == VARIABLES


def test_every_container_gets_them_and_keeps_its_own(plane: ControlPlane) -> None:
    own = {"env": [{"name": "LR", "value": "0.1"}], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    given = [{**TRAINER, **own}, {"name": "sidecar", "image": "sidecar"}]
    data = {"name": "data", "emptyDir": {}}
    spec = admitted(plane, LABELLED, given, volumes=[data], initContainers=[{"name": "first", "image": "first"}])
    trainer, sidecar = spec["containers"]
    assert by_name(spec["volumes"]) == by_name([data, VOLUME])
    assert by_name(trainer["volumeMounts"]) == by_name([*own["volumeMounts"], MOUNT])
    assert variables_of(trainer) == {"LR": "0.1", **VARIABLES}
    assert sidecar["volumeMounts"] == [MOUNT]
    assert variables_of(sidecar) == VARIABLES
    (first,) = spec["initContainers"]
    assert untouched(first), "what runs before training has nothing to tell"


@pytest.mark.parametrize("component", ["trainer", "profiler", "anything"])
def test_whatever_else_a_pod_of_a_job_is_called_it_gets_them(plane: ControlPlane, component: str) -> None:
    spec = admitted(plane, {**LABELLED, names.LABEL_COMPONENT: component}, [TRAINER])
    assert spec["volumes"] == [VOLUME]


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_a_container_sets_itself_stays(plane: ControlPlane, variable: str) -> None:
    spec = admitted(plane, LABELLED, [{**TRAINER, "env": [{"name": variable, "value": "mine"}]}])
    (container,) = spec["containers"]
    assert variables_of(container) == {**VARIABLES, variable: "mine"}
    assert len(container["env"]) == len(VARIABLES), "nothing is there twice"


def test_a_variable_that_comes_from_elsewhere_stays(plane: ControlPlane) -> None:
    own = {"name": names.ENV_NAMESPACE, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}
    (container,) = admitted(plane, LABELLED, [{**TRAINER, "env": [own]}])["containers"]
    assert own in container["env"]
    assert len(container["env"]) == len(VARIABLES)


def test_a_folder_that_is_mounted_already_stays(plane: ControlPlane) -> None:
    other = {"name": "mine", "hostPath": {"path": "/srv/perseus", "type": ""}}
    mount = {"name": "mine", "mountPath": names.SOCKET_FOLDER}
    (container,) = admitted(plane, LABELLED, [{**TRAINER, "volumeMounts": [mount]}], volumes=[other])["containers"]
    assert container["volumeMounts"] == [mount]


def test_a_volume_of_that_name_is_mounted_as_it_is(plane: ControlPlane) -> None:
    own = {"name": "perseus-socket", "hostPath": {"path": "/srv/perseus", "type": ""}}
    spec = admitted(plane, LABELLED, [TRAINER], volumes=[own])
    assert spec["volumes"] == [own]
    assert spec["containers"][0]["volumeMounts"] == [MOUNT]


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"app": "train"},
        {"perseus.energy/jobs": "train"},
        {names.LABEL_MODEL: "gpt"},
        {**LABELLED, names.LABEL_COMPONENT: "optimiser"},
    ],
    ids=["none", "others", "nearly", "model", "optimiser"],
)
def test_other_pods_stay_as_they_are(plane: ControlPlane, labels: dict[str, str]) -> None:
    given = [{**TRAINER, "env": [{"name": "LR", "value": "0.1"}]}]
    spec = admitted(plane, labels, given)
    assert "volumes" not in spec
    (container,) = spec["containers"]
    assert container["env"] == given[0]["env"]
    assert "volumeMounts" not in container


@pytest.mark.parametrize("namespace", [BASELINE, RESTRICTED])
def test_where_the_socket_is_forbidden_a_pod_is_admitted_without_it(plane: ControlPlane, namespace: str) -> None:
    secure = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = admitted(plane, LABELLED, [{**TRAINER, "securityContext": secure}], namespace)
    assert "volumes" not in spec
    assert untouched(spec["containers"][0])


def test_what_is_no_pod_stays_as_it_is(plane: ControlPlane) -> None:
    template = {"metadata": {"labels": LABELLED}, "spec": {"restartPolicy": "Never", "containers": [TRAINER]}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train", "labels": LABELLED},
        "spec": {"template": template},
    }
    stored = plane.client.call("POST", batch_path(OPEN), job, {"dryRun": "All"})
    assert untouched(stored["spec"]["template"]["spec"]["containers"][0])


def admitted(
    plane: ControlPlane, labels: dict[str, str], containers: list[Document], namespace: str = OPEN, **spec: Any
) -> Document:
    """The spec of a pod as the API server would store it."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "rank", "labels": labels},
        "spec": {"containers": copy.deepcopy(containers), **spec},
    }
    found: Document = plane.client.call("POST", core_path("pods", namespace), pod, {"dryRun": "All"})["spec"]
    return found


def untouched(container: Document) -> bool:
    """Whether a container that had neither variables nor mounts has none."""
    return not {"env", "volumeMounts"} & set(container)


def variables_of(container: Document) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def by_name(documents: list[Document]) -> dict[str, Document]:
    return {each["name"]: each for each in documents}
