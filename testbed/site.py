"""The names and addresses of one testbed.

They are derived from the state folder, so that a second testbed never mistakes the first one's namespace or link for a
leftover of its own. Everything runs in one network namespace: the host keeps its iptables rules and sysctls, and
reaches the API server and each pod through one veth pair.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from testbed.folders import DEFAULT_STATE, Folders

NODE_NAME = "node-1"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"
# What pods make on the host through hostPath volumes, and what goes away with the cluster.
HOST_FOLDERS = [Path("/var/lib/perseus"), Path("/run/perseus"), Path("/var/lib/perseus-simulator")]


@dataclass(frozen=True)
class Site:
    """What one testbed calls its own on this machine."""

    folders: Folders

    @property
    def is_default(self) -> bool:
        """Whether this is the machine's usual testbed, whose kubelet lives where real ones do."""
        return self.folders.state == DEFAULT_STATE

    @property
    def identity(self) -> str:
        """Tells this testbed's processes from another one's."""
        return hashlib.sha256(str(self.folders.state).encode()).hexdigest()[:8]

    @property
    def namespace(self) -> str:
        """The network namespace's name."""
        return "perseus-testbed" if self.is_default else f"perseus-{self.identity}"

    @property
    def namespace_path(self) -> Path:
        """Where ``ip netns`` pins it."""
        return Path("/run/netns") / self.namespace

    @property
    def host_link(self) -> str:
        """The host's end of the veth pair (15 characters at most)."""
        return f"pt{self.identity}"

    @property
    def container_network(self) -> str:
        """The pods' network in the words of its plugins, which note its name in files that all clusters share."""
        return f"perseus-testbed-{self.identity}"

    @property
    def _prefix(self) -> str:
        third = 0 if self.is_default else 1 + int(self.identity, 16) % 254
        return f"10.244.{third}"

    @property
    def network(self) -> str:
        """Of the node, the pods and the host's end."""
        return f"{self._prefix}.0/24"

    @property
    def node_address(self) -> str:
        """Of the API server, the kubelet, DNS and Prometheus; the pods' gateway."""
        return f"{self._prefix}.1"

    @property
    def first_pod_address(self) -> str:
        """Pods get addresses from here on."""
        return f"{self._prefix}.2"

    @property
    def last_pod_address(self) -> str:
        """Pods get addresses up to here."""
        return f"{self._prefix}.250"

    @property
    def host_address(self) -> str:
        """Of the host's end of the veth pair."""
        return f"{self._prefix}.254"

    @property
    def api_url(self) -> str:
        """Of the API server."""
        return f"https://{self.node_address}:6443"

    @property
    def prometheus_url(self) -> str:
        """Of the testbed's Prometheus, once started."""
        return f"http://{self.node_address}:9090"

    @property
    def kubelet_root(self) -> Path:
        """Where pods' volumes and the PodResources socket are."""
        return Path("/var/lib/kubelet") if self.is_default else self.folders.state / "kubelet"

    @property
    def certificates(self) -> Path:
        """The folder of keys and certificates."""
        return self.folders.state / "certificates"

    @property
    def containerd_socket(self) -> Path:
        """Where the kubelet and ``ctr`` reach containerd."""
        return self.folders.state / "containerd.sock"

    def configuration(self, name: str) -> Path:
        """The configuration file of one program."""
        return self.folders.state / "configuration" / name

    def data(self, name: str) -> Path:
        """The data folder of one program."""
        return self.folders.state / name
