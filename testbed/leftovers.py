"""Taking away what a cluster leaves on the machine, whoever ended it and however.

Each step works on what is found, not on what is remembered, so that it can be repeated after a killed run. Only what
belongs to this testbed is touched: its marked processes, the processes in the kubelet's control groups, its folders.
"""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path

from testbed.errors import RequirementError
from testbed.execution import attempt, say
from testbed.processes import ProcessIdentity, identity_of, kill
from testbed.site import HOST_FOLDERS, Site

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_POD_GROUP = "kubepods"
# The kubelet changes them and nobody changes them back.
_KERNEL_SETTINGS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
_MARK = ".perseus-testbed"
# Built into the CNI plugins' library and into containerd; other clusters of this machine would use them too.
_NETWORK_RECORDS = Path("/var/lib/cni/results")
_SHIM_SOCKETS = Path("/run/containerd/s")


def claim_kubelet_root(site: Site) -> None:
    """Make the kubelet's folder ours.

    Raises:
        RequirementError: it belongs to somebody else's kubelet.
    """
    root = site.kubelet_root
    if root.exists() and any(root.iterdir()) and not (root / _MARK).exists():
        raise RequirementError(f"{root} belongs to another kubelet on this machine: use a machine without one")
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).touch()


def remember_kernel_settings(site: Site) -> None:
    """Keep the settings that the kubelet will change, unless an earlier run has kept them."""
    path = site.folders.state / "kernel-settings.json"
    if not path.exists():
        path.write_text(json.dumps({name: Path("/proc/sys", name).read_text().strip() for name in _KERNEL_SETTINGS}))


def restore_kernel_settings(site: Site) -> None:
    """Put the settings back."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        for name, value in json.loads((site.folders.state / "kernel-settings.json").read_text()).items():
            path = Path("/proc/sys", name)
            if path.read_text().strip() != value:
                try:
                    path.write_text(value)
                except OSError as error:
                    say(f"{path} stays as it is: {error}")


def kill_pod_processes() -> None:
    """Kill every process in the kubelet's control groups."""
    for _ in range(10):
        found = _pod_processes()
        if not found:
            return
        kill(found)


def remove_control_groups() -> None:
    """Remove the kubelet's control groups."""
    for top in {*_CONTROL_GROUPS.glob(_POD_GROUP), *_CONTROL_GROUPS.glob(f"*/{_POD_GROUP}")}:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def unmount_below(folders: list[Path]) -> None:
    """Unmount whatever is mounted below these folders, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    for place in sorted(places, key=len, reverse=True):
        if any(Path(place).is_relative_to(folder) for folder in folders):
            attempt(["umount", "--lazy", place])


def remove_network_records(site: Site) -> None:
    """Remove what the network plugins noted about pods that were killed before they could be taken off the network."""
    for record in _NETWORK_RECORDS.glob(f"{site.container_network}-*"):
        sandbox = record.name.removeprefix(f"{site.container_network}-").partition("-")[0]
        for path in [record, *_NETWORK_RECORDS.glob(f"cni-loopback-{sandbox}-*")]:
            path.unlink(missing_ok=True)
    _remove_empty(_NETWORK_RECORDS, _NETWORK_RECORDS.parent)


def remove_dead_sockets() -> None:
    """Remove the sockets of container shims that nobody listens on any more."""
    for path in _SHIM_SOCKETS.glob("*"):
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue
    _remove_empty(_SHIM_SOCKETS, _SHIM_SOCKETS.parent)


def remove_folders(site: Site) -> None:
    """Remove the state, the kubelet's folder and what pods made on the host."""
    ours = [site.folders.state]
    if (site.kubelet_root / _MARK).exists():
        ours.append(site.kubelet_root)
    if site.is_default:
        ours += HOST_FOLDERS
    for folder in ours:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _pod_processes() -> list[ProcessIdentity]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text()
        except OSError:
            continue
        if f":/{_POD_GROUP}" in groups:
            identity = identity_of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found
