"""SIGKILL in the middle of a run: of a trainer, of the agent, of the operator; invariants 1, 3 and 6 on the real parts.

Locks are read from the simulated device's own state, so that no program of ours can claim what is not so.
"""

from __future__ import annotations

import pytest
from perseus_simulator.node import SimulatedNode
from product import (
    NAMESPACE,
    RELEASED_WITHIN_SECONDS,
    Training,
    children_of,
    conditions_of,
    kill_process,
    pod_of,
    processes_of_pod,
    restarts,
    wait_until,
)

from testbed.installation import Installation

pytestmark = pytest.mark.cluster


def test_a_killed_trainer_gives_its_lock_back_and_training_comes_back_planned(
    training: Training, gpus: SimulatedNode
) -> None:
    before = training.wait_for("an iteration under the plan", lambda sample: sample.pipeline_iteration[0] > 4)
    gpu = gpus.gpu(before.ranks[0, 3].gpu)
    wait_until("stage 3 is locked", lambda: gpu.locked_range() is not None, 10)
    kill_process(training.pod_uid(3), "train")
    wait_until("the dead trainer's lock is gone", lambda: gpu.locked_range() is None, RELEASED_WITHIN_SECONDS)
    # Everybody starts anew, from iteration 0 and unlocked; then the plan is back.
    training.wait_for("training began anew", lambda sample: sample.pipeline_iteration.get(0, 99) < 2)
    training.wait_for_plan()


def test_a_killed_agent_leaves_no_lock_and_training_goes_on(
    training: Training, gpus: SimulatedNode, installation: Installation
) -> None:
    own = {rank.gpu for rank in training.sample().ranks.values()}
    agent = str(pod_of(installation, "agent")["metadata"]["uid"])
    wait_until("a GPU is locked", lambda: any(gpus.gpu(gpu).locked_range() for gpu in own), 10)
    iterations = training.sample().pipeline_iteration[0]
    kill_process(agent, "run")
    wait_until(
        "the dead agent's locks are gone",
        lambda: not any(gpus.gpu(gpu).locked_range() for gpu in own),
        RELEASED_WITHIN_SECONDS,
    )
    wait_until("the agent is back", lambda: processes_of_pod(agent, "run"), 60)
    again = training.wait_for_plan()
    assert again.pipeline_iteration[0] > iterations, "training started anew instead of going on"
    assert [restarts(pod) for pod in training.pods()] == [0] * training.stages


def test_a_killed_operator_comes_back_and_changes_nothing_that_was_right(
    training: Training, installation: Installation
) -> None:
    before = children_of(installation, training.name)
    operator = str(pod_of(installation, "operator")["metadata"]["uid"])
    kill_process(operator, "run")
    wait_until("the operator is back", lambda: processes_of_pod(operator, "run"), 60)
    # The job's status is still the dead one's: that the new one has seen the job, its own page says.
    answering = training.wait_for("the operator knows the plan", lambda sample: sample.operator_generation >= 1)
    wait_until(
        "the job is ready",
        lambda: conditions_of(installation, training.name).get("Ready", {}).get("status") == "True",
        60,
    )
    iteration = answering.pipeline_iteration[0]
    training.wait_for("three further iterations", lambda sample: sample.pipeline_iteration[0] > iteration + 3)
    assert children_of(installation, training.name) == before


def test_a_deleted_job_leaves_no_object_and_no_lock(
    training: Training, gpus: SimulatedNode, installation: Installation
) -> None:
    training.delete()
    wait_until("locks are gone", lambda: not any(gpu.locked_range() for gpu in gpus.gpus), RELEASED_WITHIN_SECONDS)
    wait_until("objects are gone", lambda: not installation.perseus_objects(NAMESPACE, training.name), 60)
