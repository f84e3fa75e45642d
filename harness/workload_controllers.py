"""JobSet's, Kubeflow Trainer's and PyTorchJob's own controllers against a bare control plane, with their CRDs.

The managers of the first two are those that their projects ship. Their webhooks are installed too, since JobSet relies
on the defaults that its own fills in; the API server finds them on loopback, with the certificate that it has itself.
PyTorchJob's controller runs in a main of the testbed's own, without its webhook, which only refuses.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.controlplane import DIES_WITH_US, ControlPlane, free_port
from testbed import binaries as programs
from testbed import versions
from testbed.definitions import define
from testbed.execution import run, wait_until
from testbed.folders import Folders

JOBSET_MODULE = f"sigs.k8s.io/jobset@v{versions.JOBSET}"
TRAINER_MODULE = f"github.com/kubeflow/trainer/v2@v{versions.TRAINER}"
PYTORCH_JOB_MODULE = f"github.com/kubeflow/training-operator@v{versions.TRAINING_OPERATOR}"
PYTORCH_JOB_CRD = "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class _Manager:
    """A manager: its program, its module, and in that its CRDs, its webhooks and the kind of its configuration.

    Attributes:
        certificates: the configuration's field for certificates of its own making, which are not wanted.
    """

    program: str
    module: str
    crds: str
    webhooks: str
    configuration: str
    certificates: str


_MANAGERS = (
    _Manager(
        "jobset", JOBSET_MODULE, "config/components/crd/bases", "config/components/webhook/manifests.yaml",
        "config.jobset.x-k8s.io/v1alpha1", "internalCertManagement",
    ),
    _Manager(
        "trainer-controller-manager", TRAINER_MODULE, "manifests/base/crds", "manifests/base/webhook/manifests.yaml",
        "config.trainer.kubeflow.org/v1alpha1", "certManagement",
    ),
)  # fmt: skip


def module_folder(module: str) -> Path:
    """Return where the files of a Go module are, downloaded if need be and checked by Go's checksum database.

    Raises:
        TestbedError: it cannot be had.
    """
    environment = {"GOFLAGS": "-mod=mod", "GOWORK": "off", "GOTOOLCHAIN": "local"}
    with tempfile.TemporaryDirectory() as folder:
        told = run(["go", "mod", "download", "-json", module], environment=environment, folder=Path(folder))
    return Path(json.loads(told)["Dir"])


@contextlib.contextmanager
def workload_controllers(plane: ControlPlane) -> Iterator[None]:
    """Both managers for the time of a block.

    Raises:
        TestbedError: one does not come up.
    """
    binaries = programs.build(Folders.from_environment().cache, only={"workload-controllers"})
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for manager in _MANAGERS:
            source = module_folder(manager.module)
            for path in sorted((source / manager.crds).glob("*_*.yaml")):
                define(plane.kubectl, path)
        for manager in _MANAGERS:
            webhooks, health = free_port(), free_port()
            processes.append(_start(plane, manager, str(binaries[manager.program]), webhooks, health))
            wait_until(manager.program, lambda port=health: _is_ready(port), timeout_seconds=_START_SECONDS)  # type: ignore[misc]
            _install_webhooks(plane, module_folder(manager.module) / manager.webhooks, manager.program, webhooks)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def pytorch_job_controller(plane: ControlPlane) -> Iterator[None]:
    """PyTorchJob's controller for the time of a block.

    Raises:
        TestbedError: it does not come up.
    """
    name = "training-operator"
    program = programs.build(Folders.from_environment().cache, only={name})[name]
    define(plane.kubectl, module_folder(PYTORCH_JOB_MODULE) / PYTORCH_JOB_CRD)
    health = free_port()
    with (plane.folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*DIES_WITH_US, str(program), f"--health=127.0.0.1:{health}"],
            env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until(name, lambda: _is_ready(health), timeout_seconds=_START_SECONDS)
        yield
    finally:
        process.kill()
        process.wait()


def _start(plane: ControlPlane, manager: _Manager, program: str, webhooks: int, health: int) -> subprocess.Popen[bytes]:
    folder = plane.folder / manager.program
    # Where a manager of controller-runtime looks for its certificate, if it is told nothing else.
    certificates = folder / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    shutil.copy(plane.certificate, certificates / "tls.crt")
    shutil.copy(plane.folder / "ca.key", certificates / "tls.key")
    configuration = {
        "apiVersion": manager.configuration,
        "kind": "Configuration",
        manager.certificates: {"enable": False},
        "leaderElection": {"leaderElect": False},
        "webhook": {"host": "127.0.0.1", "port": webhooks},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
    }
    (folder / "configuration").write_text(json.dumps(configuration))
    with (plane.folder / f"{manager.program}.log").open("ab") as log:
        return subprocess.Popen(
            [*DIES_WITH_US, program, f"--config={folder / 'configuration'}"],
            env={**os.environ, "KUBECONFIG": str(plane.kubeconfig), "TMPDIR": str(folder)},
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _is_ready(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _install_webhooks(plane: ControlPlane, manifests: Path, program: str, port: int) -> None:
    """Install a project's webhooks as it ships them, but for where they are."""
    bundle = base64.b64encode(plane.certificate.read_bytes()).decode()
    for document in yaml.safe_load_all(manifests.read_text()):
        if not document:
            continue
        document["metadata"]["name"] = program
        for webhook in document["webhooks"]:
            path: Any = webhook["clientConfig"].pop("service")["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}
        plane.kubectl("apply", "-f", "-", input_text=json.dumps(document))
