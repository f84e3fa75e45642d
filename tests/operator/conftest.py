"""A bare control plane for the operator's tests: real etcd and kube-apiserver, nobody else who writes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import binaries as programs
from testbed.execution import run, wait_until
from testbed.folders import Folders

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from bare import BareCluster, OperatorProcess  # noqa: E402 - the tests' own module, beside them


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """etcd and an API server of their own on loopback, with the CRD and the operator's namespace."""
    folder = tmp_path_factory.mktemp("bare")
    binaries = programs.build(Folders.from_environment().cache)
    ports = {name: _free_port() for name in ("etcd", "peer", "api")}
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


@pytest.fixture
def operator(bare: BareCluster) -> Iterator[OperatorProcess]:
    """The operator as a process of its own, against the bare control plane."""
    process = OperatorProcess(bare, _free_port())
    process.start()
    yield process
    process.kill()


def _start(folder: Path, name: str, arguments: list[Any]) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([str(each) for each in arguments], stdout=log, stderr=subprocess.STDOUT)


def _free_port() -> int:
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
