"""The operator's process and the bare control plane, in a test's hands."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_api.plan import Plan
from perseus_operator.profiles import profile_checksum
from perseus_planner import Pipeline, frontier
from perseus_simulator.testing import example_profile

from testbed import binaries as programs
from testbed.errors import TestbedError
from testbed.execution import run, wait_until
from testbed.folders import Folders

ROOT = Path(__file__).resolve().parents[2]
CSV = "stage,instruction,frequency,time,energy\n" + "".join(
    f"{stage},{instruction.value},{each.frequency_megahertz},{each.time_seconds!r},{each.energy_joules!r}\n"
    for (stage, instruction), rows in example_profile().measurements.items()
    for each in rows
)
HEADER = json.dumps({"blockingPowerWatts": 80.0})
CHILD_KINDS = "jobs,services,serviceaccounts,roles,rolebindings,configmaps"
SYSTEM = "perseus-system"


@dataclass(frozen=True)
class BareCluster:
    """A control plane."""

    folder: Path
    kubeconfig: Path
    kubectl_path: Path

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        """Run kubectl."""
        return run([self.kubectl_path, "--kubeconfig", self.kubeconfig, *arguments], text_input=input_text)

    def is_ready(self) -> bool:
        """Whether the API server answers."""
        try:
            return self.kubectl("get", "--raw", "/readyz") == "ok"
        except TestbedError:
            return False

    def apply(self, namespace: str, *documents: dict[str, Any]) -> None:
        """Apply documents in a namespace."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "-n", namespace, "-f", "-", input_text=json.dumps(listed))

    def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] | None = json.loads(text) if text.strip() else None
        return found

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

    def optimise(self, namespace: str, job: str) -> None:
        """Do what the optimisation pod does: fill the frontier ConfigMap."""
        data = {names.FRONTIER_KEY: base64.b64encode(example_frontier().encode()).decode()}
        patch = json.dumps({"binaryData": data})
        self.kubectl("patch", "configmap", f"{job}-frontier", "-n", namespace, "--type=merge", "-p", patch)


class OperatorProcess:
    """``perseus-operator run``, to be killed."""

    def __init__(self, cluster: BareCluster, port: int) -> None:
        """Run against a control plane, with metrics on a port."""
        self._cluster = cluster
        self._port = port
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """What it printed."""
        return self._cluster.folder / "operator.log"

    def metrics(self) -> str:
        """Its metrics page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def start(self) -> None:
        """Start it."""
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._cluster.kubeconfig),
            "PERSEUS_OPERATOR_NAMESPACE": SYSTEM,
            "PERSEUS_OPTIMISER_IMAGE": "optimiser:1",
            "PERSEUS_METRICS_PORT": str(self._port),
            **self.environment,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perseus_operator.main", "run"],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL it, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def profile_config_map(name: str = "profile", **replaced: str) -> dict[str, Any]:
    """A valid profile."""
    data = {names.PROFILE_CSV_KEY: CSV, names.PROFILE_HEADER_KEY: HEADER, **replaced}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def perseus_job(name: str = "train", **spec: Any) -> dict[str, Any]:
    """A job of 2 stages x 2 pipelines."""
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 1}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "parallelism": {"stages": 2, "pipelines": 2, "microbatches": 4},
            "profiling": {"profileRef": {"name": "profile"}},
            "template": {"spec": {"containers": [container]}},
            **spec,
        },
    }


def example_frontier() -> Frontier:
    """The frontier of the job's profile and shape."""
    return frontier(example_profile(), Pipeline(2, 4), plans=20, profile_checksum=profile_checksum(CSV, HEADER))


def eventually(what: str, condition: Callable[[], object], timeout_seconds: float = 30.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds} s"
        time.sleep(0.1)


@contextmanager
def bare_cluster(folder: Path) -> Iterator[BareCluster]:
    """etcd and an API server of their own on loopback, with the CRD and the operator's namespace."""
    binaries = programs.build(Folders.from_environment().cache)
    ports = {name: free_port() for name in ("etcd", "peer", "api")}
    certificate, key, account = folder / "ca.crt", folder / "ca.key", folder / "account.key"
    subject = ["-subj", "/CN=bare", "-addext", "subjectAltName=IP:127.0.0.1"]
    run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject])
    run(["openssl", "genrsa", "-out", account, "2048"])
    (folder / "tokens.csv").write_text("token,admin,admin,system:masters\n")
    etcd_url, peer_url = f"http://127.0.0.1:{ports['etcd']}", f"http://127.0.0.1:{ports['peer']}"
    processes = [
        _start(folder, "etcd", [
            binaries["etcd"], f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}", f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=default={peer_url}", "--unsafe-no-fsync",
        ]),
        _start(folder, "api", [
            binaries["kube-apiserver"], f"--etcd-servers={etcd_url}", f"--secure-port={ports['api']}",
            "--bind-address=127.0.0.1", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
            f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC",
            "--service-account-issuer=https://bare", f"--service-account-key-file={account}",
            f"--service-account-signing-key-file={account}", "--service-cluster-ip-range=10.97.0.0/16",
            "--disable-admission-plugins=ServiceAccount",
        ]),
    ]  # fmt: skip
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(_kubeconfig(ports["api"], certificate)))
    cluster = BareCluster(folder, kubeconfig, binaries["kubectl"])
    try:
        wait_until("the bare API server", cluster.is_ready, timeout_seconds=60, period_seconds=0.3)
        cluster.kubectl("apply", "-f", str(ROOT / "crds"))
        cluster.kubectl("wait", "--for=condition=Established", "crd/perseusjobs.perseus.energy", "--timeout=30s")
        cluster.kubectl("create", "namespace", "perseus-system")
        yield cluster
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _start(folder: Path, name: str, arguments: list[Any]) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([str(each) for each in arguments], stdout=log, stderr=subprocess.STDOUT)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kubeconfig(port: int, certificate: Path) -> dict[str, Any]:
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(certificate)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bare", "cluster": server}],
        "users": [{"name": "admin", "user": {"token": "token"}}],
        "contexts": [{"name": "bare", "context": {"cluster": "bare", "user": "admin"}}],
        "current-context": "bare",
    }
