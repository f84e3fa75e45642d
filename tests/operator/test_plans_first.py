"""Where many wait at once, plans come first: of new jobs before their training pods, of stragglers before all else.

A real API server; its audit log tells in which order the operator wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from perseus_api import names
from perseus_operator.visits import WORKERS

from harness import rights
from harness.audit import AuditLog, Use
from harness.client import Document
from harness.controlplane import SYSTEM, free_port
from harness.objects import core_path, frontier_data, job_path, perseus_job, profile_config_map
from harness.operator import OperatorProcess

from bare import BareCluster, eventually  # isort: skip - the tests' own module, beside them

pytestmark = pytest.mark.cluster
JOBS = 5 * WORKERS
USER = rights.user(rights.OPERATOR)


@pytest.fixture
def audited(bare: BareCluster, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that is not started yet."""
    process = OperatorProcess(bare.plane.operator_kubeconfig, tmp_path / "operator.log", free_port())
    yield process
    process.kill()


def create(bare: BareCluster, home: str, *jobs: Document) -> None:
    """Create jobs, their profile, and their frontiers, as a cache would leave them."""
    client = bare.plane.client
    client.post(core_path("configmaps", home), profile_config_map())
    for job in jobs:
        metadata = {"name": names.frontier_config_map_name(job["metadata"]["name"])}
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": frontier_data()}
        client.post(core_path("configmaps", home), document)
        client.post(job_path(home), job)


def is_told(bare: BareCluster, home: str, job: str) -> bool:
    return bool(bare.conditions(home, job))


def written(log: AuditLog, home: str, jobs: list[str]) -> list[Use]:
    """The operator's writes of these jobs' plans and training Jobs, in order."""
    plans = {names.plan_config_map_name(home, job) for job in jobs}
    return [
        use
        for use in log.uses(USER)
        if use.verb == "patch"
        and ((use.namespace == SYSTEM and use.name in plans) or (use.namespace == home and use.resource == "jobs"))
    ]


def test_many_new_jobs_get_their_plans_before_their_training_pods(
    bare: BareCluster, home: str, audited: OperatorProcess
) -> None:
    jobs = [f"job-{index:02d}" for index in range(JOBS)]
    create(bare, home, *map(perseus_job, jobs))
    log = AuditLog(bare.plane.audit_log)
    audited.start()
    for job in jobs:
        eventually(f"{job} is told of", lambda job=job: is_told(bare, home, job), timeout_seconds=60)  # type: ignore[misc]
    writes = written(log, home, jobs)
    plans = [place for place, use in enumerate(writes) if use.resource == "configmaps"]
    workloads = [place for place, use in enumerate(writes) if use.resource == "jobs"]
    assert len(plans) == len(workloads) == JOBS
    # When the last visits begin nobody waits any more: they go on at once.
    assert sum(place < plans[-1] for place in workloads) <= WORKERS
    for job in jobs:
        conditions = bare.conditions(home, job)
        assert conditions["WorkloadReady"]["reason"] == "PodsStarting"
        plan = bare.plan(home, job)
        assert plan is not None
        assert plan.generation == 1


def test_a_job_whose_training_pods_are_refused_keeps_no_plan(
    bare: BareCluster, home: str, audited: OperatorProcess
) -> None:
    create(bare, home, perseus_job("train", gpus=3))
    audited.start()
    eventually("it is told", lambda: is_told(bare, home, "train"))
    assert bare.conditions(home, "train")["WorkloadReady"]["reason"] == "TemplateRefused"
    assert bare.plan(home, "train") is None
    # Corrected, it gets one, under a generation that no agent has seen before.
    template = perseus_job("train")["spec"]["template"]
    bare.plane.client.merge(job_path(home, "train"), {"spec": {"template": template}})
    eventually("a plan", lambda: bare.plan(home, "train") is not None)
    plan = bare.plan(home, "train")
    assert plan is not None
    assert plan.generation == 2


def test_a_suspended_job_and_one_in_a_queue_get_no_plan_before_they_train(
    bare: BareCluster, home: str, audited: OperatorProcess
) -> None:
    queued = perseus_job("queued")
    queued["metadata"]["labels"] = {names.QUEUE_LABELS[0]: "team"}
    create(bare, home, perseus_job("suspended", suspend=True), queued)
    log = AuditLog(bare.plane.audit_log)
    audited.start()
    eventually("one is told of", lambda: is_told(bare, home, "suspended"))
    eventually("the other is told of", lambda: is_told(bare, home, "queued"))
    assert bare.plan(home, "suspended") is None
    workloads_before_a_plan = []
    for use in written(log, home, ["suspended", "queued"]):
        if use.resource == "configmaps":
            break
        workloads_before_a_plan.append(use.name)
    assert "queued" in workloads_before_a_plan
