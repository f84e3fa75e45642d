"""The documented commands that need pods, run as they are written; and those of the chart's notes."""

from __future__ import annotations

import re

import pytest
from perseus_api import names
from product import wait_until

from testbed.installation import RELEASE, SYSTEM_NAMESPACE, Installation
from tests.documented import Command, Room, of, run_as_written

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("command", of(Room.CLUSTER), ids=str)
def test_a_command_runs_as_it_is_written(command: Command, installation: Installation) -> None:
    run(command.text, installation)


def test_the_charts_notes_name_commands_that_run(installation: Installation) -> None:
    notes = installation.helm("get", "notes", RELEASE, "--namespace", SYSTEM_NAMESPACE)
    told = re.findall(r"^  (kubectl .*)$", notes, flags=re.MULTILINE)
    assert len(told) == 3
    for text in told:
        run(text, installation)


def run(text: str, installation: Installation) -> None:
    """Run a command on an agent's pod; where that is deleted, wait for the next one."""
    (pod,) = installation.pods("agent")
    run_as_written(re.sub(r"\bPOD\b", pod, text), KUBECONFIG=str(installation.kubeconfig))
    if text.startswith("kubectl delete"):
        wait_until("the next agent runs", lambda: set(installation.pods("agent")) - {pod}, 60)
        installation.kubectl(
            "wait", "pod", "-n", SYSTEM_NAMESPACE, "-l", f"{names.LABEL_COMPONENT}=agent", "--for=condition=Ready",
            "--timeout=60s",
        )  # fmt: skip
        installation.forget_addresses()
