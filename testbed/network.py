"""The network namespace, its bridge, and the host's link into it.

The bridge is made here and not left to the CNI plugin, because its address is the node's: the API server must answer
there before the first pod exists. On the host only one interface appears, and no rule and no sysctl changes.
"""

from pathlib import Path

from testbed.execution import attempt, run
from testbed.site import Site

BRIDGE = "cni0"
_PEER = "uplink"
_MAC = "0a:58:0a:f4:00:01"


def exists(site: Site) -> bool:
    """Whether namespace and link are both there."""
    return site.namespace_path.exists() and Path("/sys/class/net", site.host_link).exists()


def create(site: Site) -> None:
    """Make the namespace with its bridge, and connect the host to it."""
    name = site.namespace
    run(["ip", "netns", "add", name])
    run(["ip", "link", "add", site.host_link, "type", "veth", "peer", "name", _PEER, "netns", name])
    commands = [
        "link set lo up",
        # A bridge without an address of its own takes its lowest port's: each pod that comes or goes could change it,
        # and whoever had the old one in its neighbour table would talk to nobody for seconds.
        f"link add {BRIDGE} address {_MAC} type bridge",
        f"addr add {site.node_address}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"link set {_PEER} master {BRIDGE}",
        f"link set {_PEER} up",
        # Programs look for the route that leads out to find the node's own address; there is no way out.
        f"route add default via {site.host_address}",
    ]
    run(["ip", "-netns", name, "-batch", "-"], text_input="\n".join(commands) + "\n")
    run(["nsenter", f"--net={site.namespace_path}", "sysctl", "-qw", "net.ipv4.ip_forward=1"])
    run(["ip", "addr", "add", f"{site.host_address}/24", "dev", site.host_link])
    run(["ip", "link", "set", site.host_link, "up"])


def remove(site: Site) -> None:
    """Take both away, whatever of them is left."""
    attempt(["ip", "link", "delete", site.host_link])
    if site.namespace_path.exists() and not attempt(["ip", "netns", "delete", site.namespace]):
        # A namespace whose mount was lost in a crash leaves a plain file.
        site.namespace_path.unlink(missing_ok=True)
