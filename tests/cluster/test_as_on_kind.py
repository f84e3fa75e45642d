"""A cluster without a GPU, as docs/install.md has it for kind: its commands as they stand, up to the plan on all GPUs.

Docker and kind, which load the images onto the node under the chart's own tag, are what is not there: the testbed's
containerd has the images, and gives them that name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from product import Training, images_also_under, status_of, wait_until

from testbed.installation import RELEASE, SYSTEM_NAMESPACE, Installation
from tests.documented import commands, run_as_written

pytestmark = pytest.mark.cluster
PAGE, TAG = "docs/install.md", "0.1.0"
JOB, PROFILE, RANKS = "gpt3-175b", "gpt3-175b-a100-sxm", 16
# Ten iterations of the baseline at full clock, and everything before and after.
PLANNED_SECONDS = 240.0


@pytest.fixture(scope="module")
def emptied(installation: Installation) -> Iterator[Installation]:
    """The cluster without the release, with images of the chart's own tag; as it was afterwards."""
    with images_also_under(installation, TAG):
        installation.uninstall_chart()
        try:
            yield installation
        finally:
            installation.uninstall_chart()
            installation.install_chart()


def test_the_documented_commands_lead_to_a_plan_on_every_simulated_gpu(emptied: Installation) -> None:
    install, apply = documented()
    training = Training(emptied, JOB, stages=RANKS)
    try:
        run_as_written(install, KUBECONFIG=str(emptied.kubeconfig))
        emptied.forget_addresses()
        wait_until("GPUs are announced", lambda: gpus_of(emptied) == RANKS, 90)
        run_as_written(apply, KUBECONFIG=str(emptied.kubeconfig))
        training.wait_for_plan(timeout_seconds=PLANNED_SECONDS)
        wait_until("it is told", lambda: status_of(emptied, JOB).get("plan", {}).get("predictedSavingsPermille"), 30)
        told = emptied.kubectl("get", "pjob", JOB, "-n", "default")
        print(told)
        assert str(status_of(emptied, JOB)["plan"]["predictedSavingsPermille"]) in told.splitlines()[1].split()
        assert "Phase:          Succeeded" in emptied.helm("test", RELEASE, "--namespace", SYSTEM_NAMESPACE)
    finally:
        training.delete()
        emptied.kubectl("delete", "configmap", PROFILE, "-n", "default", "--ignore-not-found")


def documented() -> list[str]:
    """What the page says to type once the images are there: install, and apply."""
    told = [each for each in commands() if each.page == PAGE and not each.line.startswith("for ")]
    return [each.text for each in told if "simulator.gpus" in each.line or f":{TAG}" in each.line]


def gpus_of(installation: Installation) -> int:
    """How many GPUs the nodes have to give."""
    found = installation.kubectl("get", "nodes", "-o", r"jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}")
    return sum(map(int, found.split()))
