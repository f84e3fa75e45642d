"""The one node: containerd, the kubelet, kube-proxy and CoreDNS.

CoreDNS runs as a process at the node's address, so that names resolve before and without any image. Several settings
are owed to machines that are containers or small virtual machines themselves: no AppArmor, cgroup v1, no right to lower
an out-of-memory score, no right to touch the host's connection tracking.
"""

import json

from testbed import certificates, network, nvidia_runtime
from testbed.binaries import Binaries
from testbed.service import Service
from testbed.site import CLUSTER_DOMAIN, NODE_NAME, Site

PAUSE_IMAGE = "localhost/perseus/pause:1"
_PLUGIN_FOLDER = "/usr/lib/cni"  # Debian's place.
_MAXIMUM_PODS = 110

_CONTAINERD = """version = 3
root = "{data}/root"
state = "{data}/run"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{socket}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.runtime']
  # Without this every pod fails where the caller may not lower an out-of-memory score.
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true

  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{data}/runc"

      # What NVIDIA's container toolkit adds, for pods with its RuntimeClass.
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
      runtime_type = "io.containerd.runc.v2"

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]
        BinaryName = "{nvidia}"
        SystemdCgroup = false
        Root = "{data}/runc"

  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{cni}"
"""

_COREFILE = """{domain}:53 in-addr.arpa:53 {{
    bind {address}
    errors
    ready {address}:8181
    kubernetes {domain} in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
}}
.:53 {{
    bind {address}
    errors
    # Nothing outside the cluster exists; say so at once instead of letting a client time out.
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def services(site: Site, binaries: Binaries) -> list[Service]:
    """The node's processes in the order of their start."""
    path = ":".join([*(str(folder) for folder in binaries.folders), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
    environment = {"PATH": path}
    containerd = Service(
        "containerd",
        (str(binaries["containerd"]), f"--config={site.configuration('containerd.toml')}"),
        site.containerd_socket,
        environment,
    )
    kubelet = Service(
        "kubelet",
        (
            str(binaries["kubelet"]),
            f"--config={site.configuration('kubelet.json')}",
            f"--kubeconfig={certificates.kubeconfig(site, 'kubelet')}",
            f"--root-dir={site.kubelet_root}",
            f"--cert-dir={site.kubelet_root}/pki",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={site.node_address}",
        ),
        f"http://{site.node_address}:10248/healthz",
        environment,
    )
    proxy = Service(
        "kube-proxy",
        (str(binaries["kube-proxy"]), f"--config={site.configuration('kube-proxy.json')}"),
        f"http://{site.node_address}:10256/livez",
        environment,
    )
    dns = Service(
        "coredns",
        (str(binaries["coredns"]), "-conf", str(site.configuration("Corefile"))),
        f"http://{site.node_address}:8181/ready",
        environment,
    )
    return [containerd, kubelet, proxy, dns]


def write_configuration(site: Site) -> None:
    """Write the files that the processes read."""
    networks = site.configuration("cni")
    networks.mkdir(parents=True, exist_ok=True)
    (networks / "10-testbed.conflist").write_text(json.dumps(_container_network(site), indent=1))
    site.configuration("containerd.toml").write_text(
        _CONTAINERD.format(
            data=site.data("containerd"),
            socket=site.containerd_socket,
            pause=PAUSE_IMAGE,
            plugins=_PLUGIN_FOLDER,
            cni=networks,
            nvidia=nvidia_runtime.write(site.configuration("nvidia-container-runtime")),
        )
    )
    site.configuration("kubelet.json").write_text(json.dumps(_kubelet(site), indent=1))
    site.configuration("kube-proxy.json").write_text(json.dumps(_proxy(site), indent=1))
    site.configuration("resolv.conf").write_text(f"nameserver {site.node_address}\n")
    site.configuration("Corefile").write_text(
        _COREFILE.format(
            domain=CLUSTER_DOMAIN,
            address=site.node_address,
            kubeconfig=certificates.kubeconfig(site, certificates.ADMINISTRATOR),
        )
    )


def _container_network(site: Site) -> dict[str, object]:
    addresses = {
        "subnet": site.network,
        "rangeStart": site.first_pod_address,
        "rangeEnd": site.last_pod_address,
        "gateway": site.node_address,
    }
    return {
        "cniVersion": "1.0.0",
        "name": site.container_network,
        "plugins": [
            {
                "type": "bridge",
                "bridge": network.BRIDGE,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(site.data("cni-addresses")),
                    "ranges": [[addresses]],
                    "routes": [{"dst": "0.0.0.0/0", "gw": site.node_address}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _kubelet(site: Site) -> dict[str, object]:
    serving = certificates.serving(site)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{site.containerd_socket}",
        "address": site.node_address,
        "healthzBindAddress": site.node_address,
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(certificates.authority(site).certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "maxPods": _MAXIMUM_PODS,
        "clusterDNS": [site.node_address],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(site.configuration("resolv.conf")),
        "podLogsDir": str(site.data("pod-logs")),
        "volumePluginDir": str(site.data("volume-plugins")),
        # A test machine's disk belongs to others: neither collect images nor evict pods because of it.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    }


def _proxy(site: Site) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": NODE_NAME,
        "bindAddress": site.node_address,
        "clusterCIDR": site.network,
        "clientConnection": {"kubeconfig": str(certificates.kubeconfig(site, "kube-proxy"))},
        "healthzBindAddress": f"{site.node_address}:10256",
        "metricsBindAddress": f"{site.node_address}:10249",
        # The pods of this one node share a bridge, where an answer would bypass the translation back.
        "iptables": {"masqueradeAll": True},
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
