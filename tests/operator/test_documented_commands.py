"""The documented helm and kubectl commands that need no node, run as they are written on an empty control plane."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from harness.controlplane import ControlPlane, free_port, running
from harness.operator import OperatorProcess
from harness.release import Release
from tests.documented import Command, Room, of, run_as_written

pytestmark = pytest.mark.cluster
JOB = "gpt3-175b"
# What a page leaves to be filled in.
FILLED_IN = {"NAME": JOB, "NAMESPACE": "default", "REGISTRY": "localhost"}
INSTALLING = [each for each in of(Room.PLANE) if each.line.startswith("helm install")]
OTHERS = [each for each in of(Room.PLANE) if each not in INSTALLING]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An empty control plane."""
    with running(tmp_path_factory.mktemp("documented"), empty=True) as found:
        yield found


@pytest.fixture(scope="module")
def installed(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The README's installation, and its job, which the operator knows; and a node that has the job's name."""
    run(INSTALLING[0], plane)
    operator = OperatorProcess(plane.credentials(plane.operator_kubeconfig), plane.folder / "operator.log", free_port())
    operator.start()
    plane.client.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": JOB}})
    yield plane
    operator.kill()


@pytest.mark.parametrize("command", INSTALLING, ids=str)
def test_an_installation_as_documented_is_one_and_can_be_removed(command: Command, plane: ControlPlane) -> None:
    release = Release(plane)
    told = run(command, plane)
    try:
        assert "STATUS: deployed" in told
        if "kubectl get pjob" in command.line:
            assert re.search(rf"^{JOB} ", told, flags=re.MULTILINE)
    finally:
        release.uninstall()
        plane.kubectl("delete", "perseusjobs", "--all", "-n", "default")
    assert release.left() == []


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_a_command_runs_as_it_is_written(command: Command, installed: ControlPlane) -> None:
    run(command, installed)


def run(command: Command, plane: ControlPlane) -> str:
    """Run a command with what is to be filled in."""
    text = re.sub(r"\b[A-Z]{4,}\b", lambda found: FILLED_IN.get(found[0], found[0]), command.text)
    return run_as_written(text, KUBECONFIG=str(plane.kubeconfig))
