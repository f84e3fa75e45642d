"""The agent's DaemonSet goes away under a job that trains: every clock is given back, and training goes on unlocked."""

from __future__ import annotations

import time

import pytest
from perseus_simulator.node import SimulatedNode
from product import NAMESPACE, RELEASED_WITHIN_SECONDS, Training, processes_of_pod, wait_until

from testbed.installation import SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster


def test_a_daemonset_that_is_removed_leaves_no_lock(
    training: Training, gpus: SimulatedNode, installation: Installation
) -> None:
    training.wait_for("an iteration under the plan", lambda sample: sample.pipeline_iteration[0] > 4)
    wait_until("clocks are locked", lambda: any(gpu.locked_range() for gpu in gpus.gpus), 30)
    try:
        installation.kubectl("delete", "daemonset", "perseus-agent", "-n", SYSTEM_NAMESPACE, "--wait=false")
        begin = time.monotonic()
        wait_until(
            "every clock is free", lambda: not any(gpu.locked_range() for gpu in gpus.gpus), 2 * RELEASED_WITHIN_SECONDS
        )
        # From the API's acceptance: the garbage collector and the kubelet come before the agent hears of it.
        assert time.monotonic() - begin < RELEASED_WITHIN_SECONDS
        time.sleep(2)
        assert not any(gpu.locked_range() for gpu in gpus.gpus)
        assert processes_of_pod(training.pod_uid(0), "train"), "training goes on"
        phases = installation.kubectl(
            "get", "pods", "-n", NAMESPACE, "-l", f"perseus.energy/job={training.name}",
            "-o", "jsonpath={.items[*].status.phase}",
        )  # fmt: skip
        assert "Failed" not in phases
    finally:
        installation.install_chart()
    training.wait_for_plan()
