"""An agent sees the plans of the jobs that have pods on its node, and no others, on a real API server.

A fleet has a plan for each job and an agent on each node: what every agent had to read of every plan would be their
product.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config
from perseus_api import names
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import JobReference, Plan
from perseus_daemonset.cluster import ClusterWatch
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pods import PodTable
from perseus_operator.planning import Stragglers, make_plan

from harness import rights
from harness.audit import AuditLog
from harness.controlplane import SYSTEM
from harness.objects import core_path, frontier_of, perseus_job

from bare import BareCluster, eventually  # isort: skip - the tests' own module, beside them


pytestmark = pytest.mark.cluster
OTHER_NODE = "another-node"


def plan_of(namespace: str, job: str, generation: int = 1) -> Plan:
    reference = JobReference(namespace=namespace, name=job, uid=f"uid-of-{job}")
    spec = PerseusJobSpec.parse(perseus_job(job)["spec"])
    return make_plan(reference, spec, frontier_of(), Stragglers(), generation, 0)


class Agent:
    """An agent's eyes, with the chart's account, and what they told."""

    def __init__(self, bare: BareCluster, node: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kubeconfig = bare.plane.credentials(folder / "kubeconfig", rights.AGENT)
        # Its own way would be the process's KUBECONFIG, read once for all tests.
        monkeypatch.setattr(ClusterWatch, "connect", lambda _: config.load_kube_config(str(kubeconfig)))
        self.user = rights.user(rights.AGENT)
        self.plans = PlanStore()
        self.changed: list[tuple[str, str]] = []
        self.plans.on_change = self.changed.append
        self.watch = ClusterWatch(node, SYSTEM, PodTable(), self.plans)

    def generation(self, namespace: str, job: str) -> int:
        plan = self.plans.find(namespace, job)
        return plan.generation if plan else 0


@pytest.fixture
def agent(bare: BareCluster, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    made = Agent(bare, node_of(home), tmp_path, monkeypatch)
    yield made
    made.watch.stop()
    eventually("no thread is left", lambda: not watches(), timeout_seconds=60)


def write_plan(bare: BareCluster, namespace: str, job: str, generation: int = 1) -> None:
    labels = {names.LABEL_DOCUMENT: names.DOCUMENT_PLAN, names.LABEL_JOB: job, names.LABEL_JOB_NAMESPACE: namespace}
    encoded = base64.b64encode(plan_of(namespace, job, generation).encode()).decode()
    metadata = {"name": names.plan_config_map_name(namespace, job), "labels": labels}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "binaryData": {names.PLAN_KEY: encoded},
    }
    bare.plane.client.apply(core_path("configmaps", SYSTEM, metadata["name"]), config_map, "test")


def delete_plan(bare: BareCluster, namespace: str, job: str) -> None:
    bare.plane.client.call("DELETE", core_path("configmaps", SYSTEM, names.plan_config_map_name(namespace, job)))


def node_of(home: str) -> str:
    """A node of the test's own."""
    return f"node-of-{home}"


def start_pod(bare: BareCluster, namespace: str, name: str, job: str, node: str = "") -> None:
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {names.LABEL_JOB: job}},
        "spec": {"nodeName": node or node_of(namespace), "containers": [{"name": "rank", "image": "trainer"}]},
    }
    bare.plane.client.post(core_path("pods", namespace), pod)


def end_pod(bare: BareCluster, namespace: str, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    bare.plane.client.call("DELETE", core_path("pods", namespace, name), body)


def finish_pod(bare: BareCluster, namespace: str, name: str) -> None:
    bare.plane.client.merge(core_path("pods", namespace, name) + "/status", {"status": {"phase": "Succeeded"}})


def watches() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("watch-the plan")]


def test_an_agent_that_starts_knows_the_plans_of_its_nodes_jobs_before_it_serves(
    bare: BareCluster, home: str, agent: Agent
) -> None:
    for job in ("mine", "elsewhere", "nobodys"):
        write_plan(bare, home, job)
    start_pod(bare, home, "mine-0", "mine")
    start_pod(bare, home, "elsewhere-0", "elsewhere", OTHER_NODE)
    agent.watch.start()
    eventually("the agent is ready", lambda: agent.watch.ready)
    assert agent.changed == [(home, "mine")]
    assert agent.generation(home, "mine") == 1


def test_a_new_plan_is_sent_to_the_nodes_of_its_job_alone(bare: BareCluster, home: str, agent: Agent) -> None:
    start_pod(bare, home, "mine-0", "mine")
    start_pod(bare, home, "mine-1", "mine")
    log = AuditLog(bare.plane.audit_log)
    agent.watch.start()
    eventually("the agent is ready", lambda: agent.watch.ready)
    write_plan(bare, home, "elsewhere")
    write_plan(bare, home, "mine")
    eventually("the plan", lambda: agent.generation(home, "mine") == 1)
    write_plan(bare, home, "mine", 2)
    eventually("the next plan", lambda: agent.generation(home, "mine") == 2)
    assert agent.changed == [(home, "mine")] * 2
    asked = {use.name for use in log.uses(agent.user) if use.resource == "configmaps"}
    assert asked == {names.plan_config_map_name(home, "mine")}


def test_a_plan_is_followed_from_its_jobs_first_pod_on_the_node_to_the_last(
    bare: BareCluster, home: str, agent: Agent
) -> None:
    write_plan(bare, home, "mine")
    agent.watch.start()
    eventually("the agent is ready", lambda: agent.watch.ready)
    assert agent.generation(home, "mine") == 0
    for pod in ("mine-0", "mine-1"):
        start_pod(bare, home, pod, "mine")
    eventually("the plan", lambda: agent.generation(home, "mine") == 1)
    assert len(watches()) == 1
    finish_pod(bare, home, "mine-0")
    write_plan(bare, home, "mine", 2)
    eventually("the next plan", lambda: agent.generation(home, "mine") == 2)
    end_pod(bare, home, "mine-1")
    eventually("nobody needs it", lambda: agent.generation(home, "mine") == 0)
    eventually("its thread has ended", lambda: not watches(), timeout_seconds=60)
    assert agent.changed == [(home, "mine")] * 3
    start_pod(bare, home, "mine-2", "mine")
    eventually("it is back", lambda: agent.generation(home, "mine") == 2)


def test_a_plan_that_is_withdrawn_is_withdrawn_here(bare: BareCluster, home: str, agent: Agent) -> None:
    write_plan(bare, home, "mine")
    start_pod(bare, home, "mine-0", "mine")
    agent.watch.start()
    eventually("the plan", lambda: agent.generation(home, "mine") == 1)
    delete_plan(bare, home, "mine")
    eventually("it is withdrawn", lambda: agent.generation(home, "mine") == 0)
    write_plan(bare, home, "mine", 2)
    eventually("another one", lambda: agent.generation(home, "mine") == 2)
    # Whoever takes the label off says that it is no plan.
    path = core_path("configmaps", SYSTEM, names.plan_config_map_name(home, "mine"))
    bare.plane.client.merge(path, {"metadata": {"labels": {names.LABEL_DOCUMENT: None}}})
    eventually("it is none any more", lambda: agent.generation(home, "mine") == 0)
