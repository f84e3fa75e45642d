"""A bare control plane: real etcd and kube-apiserver on loopback, and whichever controllers a scenario asks for.

No node, no network of its own: it starts in seconds beside any other. Each part can be killed and started again, for
that is what the scenarios are about. All requests of service accounts are audited, so that a test can say who did what;
the programs run with the accounts that the chart gives them, and none may ask for more than the chart grants.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import rights
from harness.audit import AuditLog
from harness.client import Client, Document, Refused
from testbed import binaries as programs
from testbed.definitions import define
from testbed.errors import TestbedError
from testbed.execution import run, wait_until
from testbed.folders import Folders
from testbed.installation import ROOT
from testbed.installation import SYSTEM_NAMESPACE as SYSTEM

__all__ = [
    "DIES_WITH_US", "ROOT", "SYSTEM", "ControlPlane", "RightsExceeded", "free_port", "resident_megabytes", "running",
]  # fmt: skip
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "users": ["admin", "system:apiserver"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}
_CLIENT_RATE = ("--kube-api-qps=300", "--kube-api-burst=600")
_START_SECONDS = 90.0
# The longest benchmark's operator is never without a valid one.
_TOKEN_SECONDS = 24 * 3600
_SERVER_PORTS = (20_000, 32_768)
_claims: list[socket.socket] = []
# A killed run leaves no process behind.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class RightsExceeded(TestbedError):
    """A program asked for what the chart does not grant it; the text names the account and the right."""


class ControlPlane:
    """etcd, an API server, and controllers if asked for.

    Attributes:
        folder: of this control plane's files and logs.
        client: speaks as the administrator.
        url: of the API server.
        grants: the accounts and rights that were installed, the chart's own to begin with.
    """

    def __init__(
        self, folder: Path, controllers: Sequence[str] = (), scheduler: bool = False, older: bool = False
    ) -> None:
        """Prepare one in a folder; `start` starts it.

        Args:
            folder: for its files.
            controllers: of kube-controller-manager, in the words of its flag; none: it does not run.
            scheduler: whether kube-scheduler runs.
            older: whether API server and controllers are those of the oldest Kubernetes that is supported.
        """
        self.folder = folder
        self._controllers = tuple(controllers)
        self._scheduler = scheduler
        self._ports = {name: free_port() for name in ("etcd", "peer", "api", "manager", "scheduler")}
        self.url = f"https://127.0.0.1:{self._ports['api']}"
        groups = {"kubernetes", "kubernetes-older"} if older else {"kubernetes"}
        self._binaries = programs.build(Folders.from_environment().cache, only=groups)
        self._variant = "-older" if older else ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = Client(self.url, "token", self.certificate)
        self.grants: list[Document] = list(rights.rendered())

    @property
    def certificate(self) -> Path:
        """The API server's certificate, which is its own authority."""
        return self.folder / "ca.crt"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials."""
        return self.folder / "kubeconfig"

    @property
    def operator_kubeconfig(self) -> Path:
        """The credentials of the operator's account, as the chart makes it."""
        return self.folder / "operator-kubeconfig"

    @property
    def audit_log(self) -> Path:
        """What service accounts asked for, one JSON document a line."""
        return self.folder / "audit.log"

    @property
    def kubectl_path(self) -> Path:
        """Kubectl."""
        return self._binaries["kubectl"]

    def start(self, empty: bool = False) -> None:
        """Start everything, and install the CRD, the operator's namespace and accounts, unless it shall be empty.

        Raises:
            TestbedError: a part does not come up.
        """
        self._prepare()
        for name in ("etcd", "api"):
            self.start_part(name)
        self.wait_until_ready()
        if not empty:
            define(self.kubectl, ROOT / "crds")
            self.kubectl("create", "namespace", SYSTEM)
            rights.install(self.client, self.grants)
            self.credentials(self.operator_kubeconfig)
        if self._controllers:
            self.start_part("manager")
        if self._scheduler:
            self.start_part("scheduler")

    def stop(self) -> None:
        """Kill everything."""
        for name in reversed(list(self._processes)):
            self.kill_part(name)

    def start_part(self, name: str) -> None:
        """Start etcd, api, manager or scheduler (again)."""
        arguments = {
            "etcd": self._etcd,
            "api": self._api_server,
            "manager": self._controller_manager,
            "scheduler": self._kube_scheduler,
        }[name]()
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*DIES_WITH_US, *(str(each) for each in arguments)], stdout=log, stderr=subprocess.STDOUT
            )

    def kill_part(self, name: str) -> None:
        """SIGKILL a part, if it runs."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def hang_part(self, name: str) -> None:
        """SIGSTOP a part: it takes connections, and answers nothing."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume_part(self, name: str) -> None:
        """Let a part that hangs go on."""
        self._processes[name].send_signal(signal.SIGCONT)

    def wait_until_ready(self) -> None:
        """Wait until the API server says that it is ready.

        Raises:
            TestbedError: not in time, or a part has ended.
        """
        wait_until("the bare API server", self._is_ready_or_ends, timeout_seconds=_START_SECONDS, period_seconds=0.2)

    def _is_ready_or_ends(self) -> bool:
        for name in ("etcd", "api"):
            process = self._processes.get(name)
            if process is not None and process.poll() is not None:
                *_, last = ["no word", *(self.folder / f"{name}.log").read_text().splitlines()]
                raise TestbedError(f"{name} of the control plane in {self.folder} has ended: {last}")
        return self.is_ready()

    def is_ready(self) -> bool:
        """Whether the API server answers."""
        try:
            return self.client.text("/readyz") == "ok"
        except (Refused, OSError):
            return False

    def megabytes(self, name: str) -> float:
        """Return the resident memory of a part."""
        return resident_megabytes(self._processes[name].pid)

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        """Run kubectl as the administrator.

        Raises:
            TestbedError: it failed.
        """
        return run([self.kubectl_path, "--kubeconfig", self.kubeconfig, *arguments], text_input=input_text)

    def grant(self, documents: Sequence[Document]) -> None:
        """Install further accounts and rights, or other ones of these accounts, as part of what is granted here."""
        rights.install(self.client, documents)
        self.grants += documents

    def check_rights(self) -> None:
        """See that no program has asked for more than it was granted.

        Raises:
            RightsExceeded: one has.
        """
        found = rights.exceeded(AuditLog(self.audit_log, whole=True), self.grants)
        if found:
            raise RightsExceeded(f"asked for and not granted by the chart: {'; '.join(found)}")

    def credentials(self, path: Path, account: str = rights.OPERATOR, url: str = "") -> Path:
        """Write the credentials of one of the chart's accounts, for the API server or for what stands before it."""
        return self.write_kubeconfig(path, url, self.account_token(SYSTEM, account), account)

    def write_kubeconfig(self, path: Path, url: str = "", token: str = "token", user: str = "admin") -> Path:
        """Write credentials for a user, for the API server or for something that stands before it."""
        server: dict[str, Any] = {"server": url or self.url}
        if server["server"].startswith("https"):
            server["certificate-authority"] = str(self.certificate)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bare", "cluster": server}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "bare", "context": {"cluster": "bare", "user": user}}],
            "current-context": "bare",
        }
        path.write_text(json.dumps(document))
        return path

    def account_token(self, namespace: str, name: str) -> str:
        """Return a token of a service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        spec = {"expirationSeconds": _TOKEN_SECONDS}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = self.client.post(path, request)
        return str(answer["status"]["token"])

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        key, account = str(self.folder / "ca.key"), self.folder / "account.key"
        subject = ["-subj", "/CN=bare", "-addext", "subjectAltName=IP:127.0.0.1"]
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key]
        run([*request, "-out", str(self.certificate), *subject])
        run(["openssl", "genrsa", "-out", account, "2048"])
        (self.folder / "tokens.csv").write_text("token,admin,admin,system:masters\n")
        (self.folder / "audit-policy.json").write_text(json.dumps(_AUDIT_POLICY))
        self.write_kubeconfig(self.kubeconfig)

    def _etcd(self) -> list[Any]:
        url, peer = f"http://127.0.0.1:{self._ports['etcd']}", f"http://127.0.0.1:{self._ports['peer']}"
        return [
            self._binaries["etcd"], f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}", "--unsafe-no-fsync", "--log-level=warn",
        ]  # fmt: skip

    def _api_server(self) -> list[Any]:
        account = self.folder / "account.key"
        return [
            self._binaries[f"kube-apiserver{self._variant}"], f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            f"--secure-port={self._ports['api']}", "--bind-address=127.0.0.1",
            f"--tls-cert-file={self.certificate}", f"--tls-private-key-file={self.folder / 'ca.key'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}", "--authorization-mode=RBAC",
            "--service-account-issuer=https://bare", f"--service-account-key-file={account}",
            f"--service-account-signing-key-file={account}", "--service-cluster-ip-range=10.97.0.0/16",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            # Off in most clusters, on in some: whoever blocks an owner's deletion needs a right on the owner.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}", f"--audit-log-path={self.audit_log}",
            # Buckets of requests are for clusters of many tenants; here they would be what is measured.
            "--max-requests-inflight=800", "--max-mutating-requests-inflight=400",
        ]  # fmt: skip

    def _controller_manager(self) -> list[Any]:
        return [
            self._binaries[f"kube-controller-manager{self._variant}"], f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1", f"--secure-port={self._ports['manager']}", "--leader-elect=false",
            f"--controllers={','.join(self._controllers)}", f"--cert-dir={self.folder / 'manager'}", *_CLIENT_RATE,
        ]  # fmt: skip

    def _kube_scheduler(self) -> list[Any]:
        return [
            self._binaries["kube-scheduler"], f"--kubeconfig={self.kubeconfig}", "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['scheduler']}", "--leader-elect=false",
            f"--cert-dir={self.folder / 'scheduler'}", *_CLIENT_RATE,
        ]  # fmt: skip


@contextlib.contextmanager
def running(
    folder: Path,
    controllers: Sequence[str] = (),
    scheduler: bool = False,
    older: bool = False,
    empty: bool = False,
) -> Iterator[ControlPlane]:
    """A control plane for the time of a block; its data goes away with it, its logs stay.

    Raises:
        TestbedError: it does not start.
        RightsExceeded: a program has asked for more than the chart grants it.
    """
    plane = ControlPlane(folder, controllers, scheduler, older)
    try:
        plane.start(empty)
        yield plane
        plane.check_rights()
    finally:
        plane.stop()
        shutil.rmtree(folder / "etcd", ignore_errors=True)


def free_port() -> int:
    """Return a port of loopback that nobody uses now.

    It lies below those that the kernel gives to connections (from 32768 on): none takes it before its server is up. Nor
    does another of us: while this process lives, the port is claimed by a name among the kernel's abstract sockets.
    """
    while True:
        port = random.SystemRandom().randrange(*_SERVER_PORTS)
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            claim.bind(f"\0perseus-port-{port}")
            probe.bind(("127.0.0.1", port))
            _claims.append(claim)
            return port
        claim.close()


def resident_megabytes(pid: int, peak: bool = False) -> float:
    """Return a process's resident memory, now or at its highest.

    Raises:
        TestbedError: there is no such process.
    """
    wanted = "VmHWM:" if peak else "VmRSS:"
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) / 1024
    except FileNotFoundError:
        pass
    raise TestbedError(f"process {pid} is gone")
