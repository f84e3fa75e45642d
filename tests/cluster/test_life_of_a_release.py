"""A release under a job that trains: upgraded, rolled back, tested and removed; clocks read from the device itself.

An upgrade is to other tags, so that operator, agents and simulator are all replaced, and hooks and optimisation pods
have other images than before; what is in the images stays the same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from perseus_api import names
from perseus_simulator.node import ClockCall, SimulatedNode
from product import (
    NAMESPACE,
    RELEASED_WITHIN_SECONDS,
    Training,
    children_of,
    clock_calls_of,
    images_also_under,
    pod_of,
    processes_of_pod,
    restarts,
    small_training,
    wait_until,
)

from testbed.installation import CHART, RELEASE, ROOT, SYSTEM_NAMESPACE, Installation

pytestmark = pytest.mark.cluster
COMPONENTS = ("operator", "agent", "simulator")
LOCKED_AGAIN_WITHIN_SECONDS = 30.0


@pytest.fixture(scope="module")
def training(installation: Installation) -> Iterator[Training]:
    """One job for the release's whole life."""
    with small_training(installation) as small:
        yield small


@pytest.fixture(scope="module")
def next_tag(installation: Installation) -> Iterator[str]:
    """Another tag of the installed images."""
    tag = f"{installation.tag}-next"
    with images_also_under(installation, tag):
        yield tag


def test_an_upgrade_and_a_rollback_lose_no_lock_no_iteration_and_no_generation(
    training: Training, gpus: SimulatedNode, installation: Installation, next_tag: str
) -> None:
    first = training.wait_for("an iteration under the plan", lambda sample: sample.pipeline_iteration[0] > 4)
    own = {rank.gpu for rank in first.ranks.values()}
    bystanders = {gpu.uuid: clock_calls_of(gpu) for gpu in gpus.gpus if gpu.uuid not in own}
    assert len(bystanders) == len(gpus.gpus) - training.stages
    generation = first.ranks[0, 0].generation_active
    release = ("--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "2m")
    try:
        installation.kubectl("apply", "-f", str(ROOT / "crds"))
        upgrade = ("upgrade", RELEASE, str(CHART), "--reset-then-reuse-values", "--set", f"image.tag={next_tag}")
        edit = '{"spec": {"objective": {"type": "MaxSlowdown", "maxSlowdownPercent": 10}}}'
        upgraded = replaced(training, gpus, installation, (*upgrade, *release), edit)
        assert tags_in_use(installation) == {next_tag}
        # The operator was away when the job was edited: the next one made one plan of it, after the last.
        training.wait_for_plan(generation + 1)
        between = children_of(installation, training.name)
        rolled_back = replaced(training, gpus, installation, ("rollback", RELEASE, *release))
        assert tags_in_use(installation) == {installation.tag}
        last = training.wait_for_plan(generation + 1)
    except BaseException:
        installation.install_chart()
        raise
    assert children_of(installation, training.name) == between, "an operator that was replaced has nothing to write"
    assert {rank.generation_active for rank in last.ranks.values()} == {generation + 1}
    for each in (upgraded, rolled_back):
        print(each)
        assert max(each.free_seconds.values()) <= RELEASED_WITHIN_SECONDS
        assert max(each.locked_seconds.values()) <= LOCKED_AGAIN_WITHIN_SECONDS
    assert {gpu.uuid: clock_calls_of(gpu) for gpu in gpus.gpus if gpu.uuid in bystanders} == bystanders
    assert [restarts(pod) for pod in training.pods()] == [0] * training.stages
    seconds = iterations_of(training, installation)
    assert list(seconds) == list(range(len(seconds))), "an iteration is missing, or training began anew"
    longest, usual = max(seconds.values()), median(seconds.values())
    # Whoever waited for its agent would wait until it is there again.
    away = min(*upgraded.locked_seconds.values(), *rolled_back.locked_seconds.values())
    print(f"iterations: {len(seconds)}, median {usual}, longest {longest}, agents away for at least {away}")
    assert longest < usual + away


def test_helm_test_is_content_with_a_release_that_was_rolled_back(installation: Installation) -> None:
    assert "Phase:          Succeeded" in installation.helm("test", RELEASE, "--namespace", SYSTEM_NAMESPACE)


def test_uninstall_gives_all_clocks_back_and_leaves_training_alone(
    training: Training, gpus: SimulatedNode, installation: Installation
) -> None:
    own = [gpus.gpu(rank.gpu) for rank in training.wait_for_plan().ranks.values()]
    wait_until("every GPU is locked", lambda: all(gpu.locked_range() for gpu in own), 20)
    begun = {gpu.uuid: gpu.clock_calls()[-1].sequence for gpu in own}
    (agent,) = processes_of_pod(str(pod_of(installation, "agent")["metadata"]["uid"]), "run")
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(end_of, agent)
        installation.uninstall_chart()
        end = ended.result()
    try:
        for gpu in own:
            assert free_after(gpu.clock_calls(begun[gpu.uuid]), end) == 0.0, (
                "the hook has it free before the agent goes"
            )
        wait_until("locks are gone", lambda: not any(gpu.locked_range() for gpu in gpus.gpus), RELEASED_WITHIN_SECONDS)
        assert [restarts(pod) for pod in training.pods()] == [0] * training.stages
        wait_until("every object is gone", lambda: not left_of_the_release(installation), 30)
        job = json.loads(installation.kubectl("get", "perseusjob", training.name, "-n", NAMESPACE, "-o", "json"))
        assert job["metadata"].get("finalizers", []) == [], "nobody is left to remove a finalizer"
    finally:
        installation.install_chart()


@dataclass(frozen=True)
class Replacement:
    """What each GPU went through, in seconds after the end of the agent that had locked it.

    Attributes:
        free_seconds: until its clock was given back, 0 if it was before.
        locked_seconds: until the next agent locked it.
    """

    free_seconds: dict[str, float]
    locked_seconds: dict[str, float]


def replaced(
    training: Training, gpus: SimulatedNode, installation: Installation, command: tuple[str, ...], edit: str = ""
) -> Replacement:
    """Have helm replace every pod and follow the job's GPUs; edit the job as soon as the operator is gone."""
    own = [gpus.gpu(rank.gpu) for rank in training.sample().ranks.values()]
    wait_until("every GPU is locked", lambda: all(gpu.locked_range() for gpu in own), 20)
    # From the newest call on: only so many are kept.
    begun = {gpu.uuid: gpu.clock_calls()[-1].sequence for gpu in own}
    pods = {name: str(pod_of(installation, name)["metadata"]["uid"]) for name in COMPONENTS}
    (agent,) = processes_of_pod(pods["agent"], "run")
    with ThreadPoolExecutor() as pool:
        done = pool.submit(installation.helm, *command)
        ended = pool.submit(end_of, agent)
        if edit:
            wait_until("the operator is gone", lambda: not processes_of_pod(pods["operator"], "run"), 60)
            installation.kubectl("patch", "pjob", training.name, "-n", NAMESPACE, "--type=merge", "-p", edit)
        done.result()
        end = ended.result()
    installation.forget_addresses()
    now = {name: str(pod_of(installation, name)["metadata"]["uid"]) for name in COMPONENTS}
    assert all(now[name] != pods[name] for name in COMPONENTS), "a pod was not replaced"
    wait_until(
        "clocks are set again",
        lambda: all(locks(since(gpu.clock_calls(begun[gpu.uuid]), end)) for gpu in own),
        LOCKED_AGAIN_WITHIN_SECONDS,
    )
    histories = {gpu.uuid: gpu.clock_calls(begun[gpu.uuid]) for gpu in own}
    return Replacement(
        {gpu: free_after(calls, end) for gpu, calls in histories.items()},
        {gpu: locks(since(calls, end))[0].received_nanoseconds / 1e9 - end for gpu, calls in histories.items()},
    )


def locks(calls: list[ClockCall]) -> list[ClockCall]:
    """The calls that locked a GPU."""
    return [call for call in calls if call.clock_range is not None and call.result == 0]


def since(calls: list[ClockCall], end: float) -> list[ClockCall]:
    """The calls after a time."""
    return [call for call in calls if call.received_nanoseconds / 1e9 > end]


def free_after(calls: list[ClockCall], end: float) -> float:
    """Seconds from an agent's end until its last lock was taken away; 0 if that was before."""
    before = calls[: len(calls) - len(since(calls, end))]
    if before[-1].clock_range is None:
        return 0.0
    reset = since(calls, end)[0]
    story = [(round(call.received_nanoseconds / 1e9 - end, 3), call.clock_range, call.result) for call in calls]
    assert reset.clock_range is None, f"the next agent locked what nobody had given back: {story}"
    return reset.received_nanoseconds / 1e9 - end


def end_of(pid: int) -> float:
    """Wait for the end of a process, and return when it was."""
    wait_until("the agent's end", lambda: not Path(f"/proc/{pid}").exists(), 120)
    return time.monotonic()


def tags_in_use(installation: Installation) -> set[str]:
    """The tags of all running images of the product."""
    found = installation.kubectl(
        "get", "pods", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/part-of=perseus-operator",
        "-o", "jsonpath={.items[*].spec.containers[*].image}",
    )  # fmt: skip
    return {image.rpartition(":")[2] for image in found.split()}


def iterations_of(training: Training, installation: Installation) -> dict[int, float]:
    """Seconds of each iteration that the first rank trained, in the order in which it did."""
    log = installation.kubectl("logs", training.pod_name(0), "-n", NAMESPACE)
    found = re.findall(r"^iteration (\d+): ([\d.]+) s$", log, flags=re.MULTILINE)
    seconds = {int(index): float(each) for index, each in found}
    assert len(seconds) == len(found), "an iteration was trained twice"
    return seconds


def left_of_the_release(installation: Installation) -> list[str]:
    """Everything that the release made and that should be gone."""
    kinds = (
        "pods,daemonsets,deployments,jobs,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,"
        "networkpolicies,mutatingadmissionpolicies,mutatingadmissionpolicybindings,"
        "validatingadmissionpolicies,validatingadmissionpolicybindings"
    )
    release = installation.kubectl("get", kinds, "-A", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name")
    plans = installation.kubectl(
        "get", "configmaps", "-n", SYSTEM_NAMESPACE, "-l", f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}", "-o", "name"
    )
    return sorted((release + plans).split())
