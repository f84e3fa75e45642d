"""The cluster's life: up, down and what is in between.

``bring_up`` may be called at any time, by several callers at once and after any earlier run was killed: a healthy
cluster is kept, anything else is taken away and started anew. A cluster is cheap (seconds), so nothing is ever
repaired.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed import binaries as programs
from testbed import certificates, containers, controlplane, leftovers, network, node, requirements
from testbed.binaries import Binaries
from testbed.errors import TestbedError
from testbed.execution import exclusive, run, wait_until
from testbed.folders import Folders
from testbed.processes import ProcessTable, kill
from testbed.service import Service
from testbed.site import NODE_NAME, Site

Progress = Callable[[str], None]
_START_SECONDS = 60.0
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    site: Site
    binaries: Binaries

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials."""
        return self.site.folders.kubeconfig

    @property
    def kubectl_path(self) -> Path:
        """The kubectl of the cluster's version."""
        return self.binaries["kubectl"]

    @property
    def helm_path(self) -> Path:
        """Helm."""
        return self.binaries["helm"]

    def kubectl(self, *arguments: str, input_text: str | None = None, timeout_seconds: float = 120.0) -> str:
        """Run kubectl as the administrator and return what it printed.

        Raises:
            TestbedError: it failed; the message holds its error output.
        """
        return run(
            [self.kubectl_path, "--kubeconfig", self.kubeconfig, *arguments],
            text_input=input_text,
            timeout_seconds=timeout_seconds,
        )

    def helm(self, *arguments: str, timeout_seconds: float = 300.0) -> str:
        """Run helm as the administrator and return what it printed.

        Raises:
            TestbedError: it failed; the message holds its error output.
        """
        return run([self.helm_path, "--kubeconfig", self.kubeconfig, *arguments], timeout_seconds=timeout_seconds)


def bring_up(progress: Progress, folders: Folders | None = None) -> Cluster:
    """Install and build what is missing, start the cluster, and return it once its node is ready.

    Raises:
        RequirementError: this machine cannot be a testbed.
        TestbedError: a step failed.
    """
    site = Site(folders or Folders.from_environment())
    requirements.check()
    requirements.install_packages(site.folders)
    if not programs.is_built(site.folders.cache):
        progress("building Kubernetes, etcd, containerd, Helm and CoreDNS from source (about ten minutes, once)")
    cluster = Cluster(site, programs.build(site.folders.cache))
    with _changing(site):
        if not _is_well(cluster):
            _take_down(cluster)
            progress("starting Kubernetes")
            begin = time.monotonic()
            _start(cluster)
            progress(f"Kubernetes is ready after {time.monotonic() - begin:.1f} s")
    return cluster


def take_down(folders: Folders | None = None) -> None:
    """Stop the cluster, if there is one, and leave no trace but the cache."""
    site = Site(folders or Folders.from_environment())
    with _changing(site):
        _take_down(Cluster(site, programs.locate(site.folders.cache)))


def is_healthy(cluster: Cluster) -> bool:
    """Whether every process of the cluster runs and answers."""
    table = ProcessTable(cluster.site)
    return network.exists(cluster.site) and all(
        table.find(service.name) is not None and service.is_healthy(cluster.site) for service in _services(cluster)
    )


def _is_well(cluster: Cluster) -> bool:
    """Whether the cluster can be kept: slow answers of living processes on a busy machine are no reason to end it."""
    table = ProcessTable(cluster.site)

    def decided() -> bool:
        if not network.exists(cluster.site) or any(table.find(each.name) is None for each in _services(cluster)):
            return True
        return is_healthy(cluster)

    try:
        wait_until("the cluster answers", decided, timeout_seconds=_ANSWER_SECONDS, period_seconds=0.5)
    except TestbedError:
        return False
    return is_healthy(cluster)


def describe(cluster: Cluster) -> list[str]:
    """One line for each process."""
    table = ProcessTable(cluster.site)
    lines = []
    for service in _services(cluster):
        identity = table.find(service.name)
        state = "not running" if identity is None else f"pid {identity.pid}"
        if identity is not None and not service.is_healthy(cluster.site):
            state += ", does not answer"
        lines.append(f"{service.name:<26}{state}")
    return lines


def _changing(site: Site) -> contextlib.AbstractContextManager[None]:
    # The lock lives beside the state, which comes and goes.
    return exclusive(Path("/run") / f"perseus-testbed-{site.identity}.lock", "the cluster")


def _services(cluster: Cluster) -> list[Service]:
    return controlplane.services(cluster.site, cluster.binaries) + node.services(cluster.site, cluster.binaries)


def _start(cluster: Cluster) -> None:
    site = cluster.site
    site.folders.state.mkdir(parents=True, exist_ok=True)
    leftovers.claim_kubelet_root(site)
    leftovers.remember_kernel_settings(site)
    network.create(site)
    certificates.create(site)
    controlplane.write_configuration(site)
    node.write_configuration(site)
    table = ProcessTable(site)
    services = {service.name: service for service in _services(cluster)}

    def start(*names: str) -> None:
        for name in names:
            table.start(name, services[name].arguments, services[name].environment)
        for name in names:
            wait_until(
                f"{name} answers (log: {site.folders.logs / name}.log)",
                functools.partial(services[name].is_healthy, site),
                timeout_seconds=_START_SECONDS,
            )

    start("etcd", "containerd")
    containers.import_pause_image(site, cluster.binaries)
    start("kube-apiserver")
    start("kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns", "kubelet")
    wait_until(f"{NODE_NAME} is ready", lambda: _node_is_ready(cluster), timeout_seconds=_START_SECONDS)
    wait_until("the default service account", lambda: _has_service_account(cluster), timeout_seconds=_START_SECONDS)


def _take_down(cluster: Cluster) -> None:
    site = cluster.site
    table = ProcessTable(site)
    if (site.folders.state / "processes").exists():
        table.stop("kubelet")
        if table.find("containerd") is not None:
            containers.end_tasks(site, cluster.binaries)
        # Their data goes away with them, so nobody need end in order; the API server would wait for its clients.
        kill([process for process in map(table.find, table.names()) if process is not None])
    kill(table.strays())
    if site.is_default:
        leftovers.kill_pod_processes()
    leftovers.unmount_below([site.folders.state, site.kubelet_root])
    leftovers.remove_network_records(site)
    leftovers.remove_dead_sockets()
    network.remove(site)
    if site.is_default:
        leftovers.remove_control_groups()
    leftovers.restore_kernel_settings(site)
    leftovers.remove_folders(site)


def _node_is_ready(cluster: Cluster) -> bool:
    try:
        found = json.loads(cluster.kubectl("get", "node", NODE_NAME, "-o", "json"))
    except TestbedError:
        return False
    return any(each["type"] == "Ready" and each["status"] == "True" for each in found["status"]["conditions"])


def _has_service_account(cluster: Cluster) -> bool:
    return bool(cluster.kubectl("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name").strip())
