"""The node: process ids, the socket's folder, the journal, the kubelet. Nothing is written, nobody is connected to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from perseus_daemonset.devices import understood
from perseus_daemonset.doctor.findings import Finding, note, well, wrong
from perseus_daemonset.identity import pod_uid
from perseus_daemonset.journal import Journal, holder_if_free
from perseus_daemonset.pod_resources import DynamicClaim, KubeletUnavailable, PodResources

_SO_PEERPIDFD = 77
LEAST_FREE_BYTES = 1024 * 1024


def look_at_processes(proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Look whether processes of other pods are seen, and told from each other."""
    own = _groups(proc / "self" / "cgroup")
    mine = pod_uid(own, own)
    found = {pod_uid(_groups(folder / "cgroup"), own) for folder in proc.iterdir() if folder.name.isdigit()}
    others = found - {None, mine}
    if others:
        yield well("processes", f"those of {len(others)} other pods are seen and known by their control groups")
    elif mine is None:
        yield note("processes", "this process is in no pod: outside of a cluster that is as it should be")
    else:
        yield wrong(
            "processes",
            "no process of another pod is seen: the agent's pod needs hostPID: true, which the chart sets (or no other "
            "pod runs on this node)",
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
            yield well("kernel", "ties a connection to its process (SO_PEERPIDFD)")
        except OSError:
            yield note(
                "kernel", "is older than 6.5: a process id is guarded from when the agent looks, not from connect"
            )


def look_at_socket(path: Path) -> Finding:
    """Look at the folder that training pods share with the agent."""
    folder = path.parent
    if not folder.is_dir():
        return wrong("socket", f"{folder} does not exist: the agent's pod mounts it from the host")
    if path.exists() and not path.is_socket():
        return wrong("socket", f"{path} is no socket: remove it on the node")
    if not path.exists():
        return note("socket", f"{path} does not exist: no agent serves on this node yet")
    return well("socket", f"{path} is there")


def look_at_journal(folder: Path) -> Iterator[Finding]:
    """Look at the journal: whether it could be written, and what it says is locked."""
    if not folder.is_dir():
        yield wrong("journal", f"{folder} does not exist: the agent's pod mounts it from the host")
        return
    space = os.statvfs(folder)
    if space.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK):
        yield wrong("journal", f"{folder} cannot be written: no clock is locked that was not written down first")
    elif space.f_bavail * space.f_frsize < LEAST_FREE_BYTES:
        yield wrong("journal", f"the disk of {folder} is full: no clock is locked that was not written down first")
    else:
        yield well("journal", f"{folder} can be written")
    entries = Journal(folder).entries()
    if entries.may_name_any_gpu:
        yield wrong("journal", "it is damaged: at its next start the agent unlocks every GPU of this node")
    if not (folder / "holder").exists():
        return
    with holder_if_free(folder) as free:
        if not free:
            yield well("journal", f"an agent runs and holds {len(entries.gpus)} GPUs locked")
        elif entries.gpus:
            yield wrong(
                "journal",
                f"no agent runs, and {', '.join(entries.gpus)} may still be locked: start the agent, or run "
                "perseus-agent release",
            )


def look_at_kubelet(folder: Path) -> Finding:
    """Look at what the kubelet says of GPUs."""
    try:
        claims = PodResources(folder).claims()
    except KubeletUnavailable as error:
        return wrong(
            "kubelet",
            f"{error}. The folder {folder} must be the kubelet's own: set the chart's agent.kubeletFolder to the "
            "kubelet's --root-dir.",
        )
    dynamic = sum(isinstance(claim, DynamicClaim) for claim in claims)
    plugin = [claim for claim in claims if not isinstance(claim, DynamicClaim)]
    devices = [device for claim in plugin if (device := understood(claim.resource, claim.device)) is not None]
    strange = {claim.device for claim in plugin if (each := understood(claim.resource, claim.device)) and not each.name}
    parts = sum(bool(device.part) for device in devices)
    told = f"{len(devices)} GPUs from device plugins, {dynamic} devices by dynamic allocation are in use"
    if strange:
        return note("kubelet", f"{told}; not understood: {', '.join(sorted(strange))[:200]}")
    return (
        note("kubelet", f"{told}; {parts} are parts of GPUs, which are not served") if parts else well("kubelet", told)
    )


def _groups(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
