"""The installed product in a test's hands: a small training job, its processes, its status."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseus_api import names
from perseus_simulator.node import SimulatedGpu

from testbed import binaries, containers
from testbed.folders import Folders
from testbed.images import TARGETS
from testbed.installation import SYSTEM_NAMESPACE, Installation
from testbed.observation import Sample
from testbed.site import Site

NAMESPACE = "default"
SIMULATOR_STATE = Path("/var/lib/perseus-simulator/state")
RELEASED_WITHIN_SECONDS = 5.0  # of the death of whoever held a lock
PROFILE_FOLDER = Path(__file__).resolve().parents[2] / "examples" / "profiles" / "gpt3-175b-a100-sxm"


@dataclass
class Training:
    """A small PerseusJob that trains: 8 stages x 1 pipeline x 4 microbatches."""

    installation: Installation
    name: str
    stages: int = 8
    namespace: str = NAMESPACE

    def apply(self, **spec: object) -> None:
        """Apply the job and its profile."""
        documents = [profile_config_map(f"{self.name}-profile"), perseus_job(self.name, self.installation.tag, **spec)]
        for document in documents:
            self.installation.kubectl("apply", "-n", self.namespace, "-f", "-", input_text=json.dumps(document))

    def delete(self) -> None:
        """Delete the job and its profile, and wait until its objects are gone."""
        self.installation.kubectl(
            "delete", "perseusjob", self.name, "-n", self.namespace, "--ignore-not-found", "--timeout=60s"
        )
        self.installation.kubectl(
            "delete", "configmap", f"{self.name}-profile", "-n", self.namespace, "--ignore-not-found", "--timeout=60s"
        )

    def sample(self) -> Sample:
        """Read every metrics page once."""
        return self.installation.read_sample(self.namespace, self.name)

    def wait_for_plan(self, generation: int = 1, timeout_seconds: float = 120.0) -> Sample:
        """Wait until every rank runs at least this generation of the plan."""

        def runs(sample: Sample) -> bool:
            active = [rank.generation_active for rank in sample.ranks.values()]
            return len(active) == self.stages and min(active) >= generation

        return self.wait_for(f"generation {generation} on every GPU", runs, timeout_seconds)

    def wait_for(self, what: str, condition: Callable[[Sample], bool], timeout_seconds: float = 60.0) -> Sample:
        """Wait for a sample that meets a condition."""
        deadline = time.monotonic() + timeout_seconds
        last: object = None
        while time.monotonic() < deadline:
            try:
                last = sample = self.sample()
            except OSError as error:
                last = error
            else:
                if condition(sample):
                    return sample
            time.sleep(0.2)
        raise AssertionError(f"{what}: not seen within {timeout_seconds:.0f} s; last: {last}")

    def pods(self) -> list[dict[str, dict[str, object]]]:
        """The training pods as the API shows them."""
        found = json.loads(
            self.installation.kubectl(
                "get", "pods", "-n", self.namespace, "-o", "json",
                "-l", f"{names.LABEL_JOB}={self.name},{names.LABEL_COMPLETION_INDEX}",
            )
        )  # fmt: skip
        items: list[dict[str, dict[str, object]]] = found["items"]
        return items

    def pod(self, rank: int) -> dict[str, dict[str, object]]:
        """A rank's pod."""
        for pod in self.pods():
            labels = pod["metadata"]["labels"]
            assert isinstance(labels, dict)
            if labels[names.LABEL_COMPLETION_INDEX] == str(rank):
                return pod
        raise AssertionError(f"no pod of rank {rank}")

    def pod_uid(self, rank: int) -> str:
        """The UID of a rank's pod."""
        return str(self.pod(rank)["metadata"]["uid"])

    def pod_name(self, rank: int) -> str:
        """The name of a rank's pod."""
        return str(self.pod(rank)["metadata"]["name"])


@contextmanager
def images_also_under(installation: Installation, tag: str) -> Iterator[None]:
    """The installed images under another tag too."""
    site = Site(Folders.from_environment())
    programs = binaries.locate(site.folders.cache)
    images = {f"localhost/perseus-{each}:{installation.tag}": f"localhost/perseus-{each}:{tag}" for each in TARGETS}
    containers.name_images_anew(site, programs, images)
    try:
        yield
    finally:
        containers.remove_images(site, programs, list(images.values()))


@contextmanager
def small_training(installation: Installation, **spec: object) -> Iterator[Training]:
    """A small job on which the plan runs; gone afterwards."""
    small = Training(installation, "small")
    small.delete()
    small.apply(**spec)
    small.wait_for_plan()
    yield small
    small.delete()


def perseus_job(name: str, tag: str, **spec: object) -> dict[str, Any]:
    """A PerseusJob of the measured GPT-3 profile, small enough for a short test."""
    container = {
        "name": "trainer",
        "image": f"localhost/perseus-simulator:{tag}",
        "command": ["perseus-simulator", "train"],
        "resources": {"limits": {names.GPU_RESOURCE: 1}},
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "parallelism": {"stages": 8, "pipelines": 1, "microbatches": 4},
            "profiling": {"profileRef": {"name": f"{name}-profile"}},
            "accounting": {"baselineIterations": 2},
            "template": {
                "spec": {
                    "restartPolicy": "OnFailure",
                    "terminationGracePeriodSeconds": 2,
                    "securityContext": {"runAsNonRoot": True, "runAsUser": 65532},
                    "containers": [container],
                }
            },
            **spec,
        },
    }


def profile_config_map(name: str, **replaced: str) -> dict[str, object]:
    """The measured profile as a ConfigMap, with keys replaced."""
    data = {
        names.PROFILE_CSV_KEY: (PROFILE_FOLDER / "profile.csv").read_text(),
        names.PROFILE_HEADER_KEY: (PROFILE_FOLDER / "header.json").read_text(),
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {**data, **replaced}}


def processes_of_pod(uid: str, argument: str) -> list[int]:
    """Process ids of a pod's processes whose command line holds an argument, by the kernel's control groups."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            groups = (folder / "cgroup").read_text().replace("_", "-")
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if uid in groups and argument.encode() in arguments:
            found.append(int(folder.name))
    return found


def kill_process(uid: str, argument: str) -> None:
    """SIGKILL the one process of a pod whose command line holds an argument."""
    pids = processes_of_pod(uid, argument)
    assert len(pids) == 1, f"pod {uid} has {len(pids)} processes with {argument}"
    os.kill(pids[0], signal.SIGKILL)


def pod_of(installation: Installation, component: str) -> dict[str, dict[str, object]]:
    """The one running pod of a part of the product."""
    name = installation.pods(component)[0]
    pod: dict[str, dict[str, object]] = json.loads(
        installation.kubectl("get", "pod", name, "-n", SYSTEM_NAMESPACE, "-o", "json")
    )
    return pod


def status_of(installation: Installation, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """A PerseusJob's status."""
    job = json.loads(installation.kubectl("get", "perseusjob", name, "-n", namespace, "-o", "json"))
    status: dict[str, Any] = job.get("status", {})
    return status


def conditions_of(installation: Installation, name: str, namespace: str = NAMESPACE) -> dict[str, dict[str, str]]:
    """A PerseusJob's conditions by type."""
    return {each["type"]: each for each in status_of(installation, name, namespace).get("conditions", [])}


def children_of(installation: Installation, name: str) -> dict[str, str]:
    """UID and generation or content version of everything that the operator made for a job."""
    found = {}
    kinds = "jobs,services,serviceaccounts,roles,rolebindings,configmaps"
    listed = json.loads(
        installation.kubectl("get", kinds, "-n", NAMESPACE, "-l", f"{names.LABEL_JOB}={name}", "-o", "json")
    )
    for each in listed["items"]:
        metadata = each["metadata"]
        # A Job's resource version also moves with its pods' states; its generation moves with its spec alone.
        version = metadata["generation"] if "generation" in metadata else metadata["resourceVersion"]
        found[f"{each['kind']}/{metadata['name']}"] = f"{metadata['uid']} {version}"
    plan = json.loads(
        installation.kubectl(
            "get", "configmap", names.plan_config_map_name(NAMESPACE, name), "-n", SYSTEM_NAMESPACE, "-o", "json"
        )
    )
    found["plan"] = f"{plan['metadata']['uid']} {plan['metadata']['resourceVersion']}"
    return found


def wait_until(what: str, condition: Callable[[], object], timeout_seconds: float) -> float:
    """Wait for a condition and return how long it took, in seconds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout_seconds:
            raise AssertionError(f"{what}: not within {timeout_seconds} s")
        time.sleep(0.02)
    return time.monotonic() - begin


def restarts(pod: dict[str, dict[str, object]]) -> int:
    statuses = pod["status"]["containerStatuses"]
    assert isinstance(statuses, list)
    return sum(int(each["restartCount"]) for each in statuses)


def clock_calls_of(gpu: SimulatedGpu) -> tuple[int, int]:
    """Return how often a GPU's clock was set and reset through NVML."""
    return gpu.calls["set_locked_clocks"], gpu.calls["reset_locked_clocks"]
