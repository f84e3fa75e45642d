"""The bare control plane in a test's hands: `harness` started once, and what the tests ask of it."""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_api.plan import Plan

from harness.controlplane import SYSTEM, ControlPlane
from harness.objects import (
    HEADER,
    batch_path,
    core_path,
    csv_of,
    frontier_data,
    frontier_of,
    job_path,
    perseus_job,
    profile_config_map,
)
from harness.operator import OperatorProcess
from testbed.errors import TestbedError

__all__ = [
    "CSV", "HEADER", "SYSTEM", "BareCluster", "OperatorProcess", "eventually", "example_frontier", "perseus_job",
    "profile_config_map",
]  # fmt: skip
CSV = csv_of()
CHILD_KINDS = "jobs,services,serviceaccounts,roles,rolebindings,configmaps"


@dataclass(frozen=True)
class BareCluster:
    """A control plane."""

    plane: ControlPlane

    @property
    def folder(self) -> Path:
        """Of its files and logs."""
        return self.plane.folder

    def make_namespace(self, prefix: str) -> str:
        """Make a namespace of a test's own; return its name."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.kubectl("create", "namespace", name)
        return name

    @contextlib.contextmanager
    def own_namespace(self) -> Iterator[str]:
        """A namespace of a test's own; its jobs are freed and deleted afterwards."""
        name = self.make_namespace("team")
        yield name
        self.free_jobs(name)

    def free_jobs(self, namespace: str) -> None:
        """Delete a namespace's jobs, whether or not an operator lets them go."""
        for job in self.kubectl("get", "perseusjobs", "-n", namespace, "-o", "name").split():
            self.kubectl("patch", job, "-n", namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
            self.kubectl("delete", job, "-n", namespace, "--ignore-not-found")

    def show_release(self, name: str) -> None:
        """Make what `helm test` and the uninstall hook look at: a Deployment and a DaemonSet whose pods are ready."""
        pods = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": name, "image": name}]}}
        spec = {"selector": {"matchLabels": {"app": name}}, "template": pods}
        deployment, agents = ("deployment", f"{name}-operator"), ("daemonset", f"{name}-agent")
        for kind, (_, each) in (("Deployment", deployment), ("DaemonSet", agents)):
            self.apply(SYSTEM, {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": each}, "spec": spec})
        status = {
            deployment: {"replicas": 1, "availableReplicas": 1, "readyReplicas": 1},
            agents: {
                "desiredNumberScheduled": 1,
                "currentNumberScheduled": 1,
                "numberMisscheduled": 0,
                "numberReady": 1,
            },
        }
        for place, ready in status.items():
            patch = json.dumps({"status": ready})
            self.kubectl("patch", *place, "-n", SYSTEM, "--subresource=status", "--type=merge", "-p", patch)

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        """Run kubectl."""
        return self.plane.kubectl(*arguments, input_text=input_text)

    def serves(self, api_version: str, plural: str) -> bool:
        """Whether the API server serves a kind."""
        try:
            return plural in self.kubectl("get", "--raw", f"/apis/{api_version}")
        except TestbedError:
            return False

    def apply(self, namespace: str, *documents: dict[str, Any]) -> None:
        """Apply documents in a namespace."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "-n", namespace, "-f", "-", input_text=json.dumps(listed))

    def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None; of kinds that are asked for often not by a process for each."""
        match kind:
            case "configmap":
                path = core_path("configmaps", namespace, name)
            case "perseusjob":
                path = job_path(namespace, name)
            case "job":
                path = batch_path(namespace, name)
            case _:
                text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
                found: dict[str, Any] | None = json.loads(text) if text.strip() else None
                return found
        return self.plane.client.get(path)

    def children(self, namespace: str, job: str) -> dict[str, dict[str, Any]]:
        """Return a job's children by kind and name, and its plan."""
        text = self.kubectl("get", CHILD_KINDS, "-n", namespace, "-l", f"{names.LABEL_JOB}={job}", "-o", "json")
        found = {f"{each['kind']}/{each['metadata']['name']}": each for each in json.loads(text)["items"]}
        plan = self.find("configmap", SYSTEM, names.plan_config_map_name(namespace, job))
        return {**found, **({"plan": plan} if plan else {})}

    def plan(self, namespace: str, job: str) -> Plan | None:
        """Return a job's plan."""
        found = self.find("configmap", SYSTEM, names.plan_config_map_name(namespace, job))
        return None if found is None else Plan.decode(base64.b64decode(found["binaryData"][names.PLAN_KEY]))

    def conditions(self, namespace: str, job: str) -> dict[str, dict[str, str]]:
        """Return a job's conditions by type."""
        found = self.find("perseusjob", namespace, job) or {}
        return {each["type"]: each for each in (found.get("status") or {}).get("conditions", [])}

    def optimise(self, namespace: str, job: str, made: Frontier | None = None) -> None:
        """Do what the optimisation pod does: fill the frontier ConfigMap (by default, of the usual profile)."""
        data = {names.FRONTIER_KEY: base64.b64encode(made.encode()).decode()} if made else frontier_data()
        patch = json.dumps({"binaryData": data})
        self.kubectl("patch", "configmap", f"{job}-frontier", "-n", namespace, "--type=merge", "-p", patch)


def example_frontier() -> Frontier:
    """The frontier of the job's profile and shape."""
    return frontier_of()


def eventually(what: str, condition: Callable[[], object], timeout_seconds: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds} s"
        time.sleep(0.1)
