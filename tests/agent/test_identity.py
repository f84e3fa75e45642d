"""From a control group to a pod: every layout that kubelets make, and every way to pretend."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_daemonset.identity import UnknownPeer, identify, pod_uid

UID = "0b0a1f6e-6c3e-4d0e-9f6b-2f4f8d1f0c11"
OTHER = "9d8c7b6a-0000-4000-8000-0123456789ab"
SYSTEMD, SYSTEMD_OTHER = UID.replace("-", "_"), OTHER.replace("-", "_")
CONTAINER = "f" * 64
V1 = "\n".join(
    f"{number}:{name}:/kubepods/burstable/pod{UID}/{CONTAINER}"
    for number, name in enumerate(("name=systemd", "pids", "cpu,cpuacct", "memory"), 1)
)


@pytest.mark.parametrize(
    "text",
    [
        V1,
        V1 + "\n0::/",
        f"0::/kubepods/pod{UID}/{CONTAINER}",
        f"0::/kubepods/besteffort/pod{UID}/{CONTAINER}",
        f"0::/kubepods/burstable/pod{UID}/{CONTAINER}/nested/by/the/container",
        f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope",
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/crio-{CONTAINER}.scope/x",
        # From a control group namespace of the agent's own: cgroupfs, then systemd.
        f"0::/../../pod{UID}/{CONTAINER}",
        f"0::/../../../pod{UID}/{CONTAINER}",
        f"0::/../../../besteffort/pod{UID}/{CONTAINER}",
        f"0::/../../kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope",
        f"0::/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice/x.scope",
        # A container restarted: its id is new, its pod is not.
        f"0::/kubepods/burstable/pod{UID}/{'a' * 64}",
    ],
)
def test_layouts_that_kubelets_make(text: str) -> None:
    assert pod_uid(text) == UID


def test_a_static_pods_uid_has_no_dashes() -> None:
    assert pod_uid("0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/x") == "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("own", "peer"),
    [
        ("0::/kubelet/kubepods/podAGENT/c", f"0::/kubelet/kubepods/burstable/pod{UID}/c"),
        (
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podAGENT.slice/c.scope",
            f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
            f"kubelet-kubepods-burstable-pod{SYSTEMD}.slice/c.scope",
        ),
        ("1:pids:/docker/abc/kubelet/kubepods/podAGENT/c", f"1:pids:/docker/abc/kubelet/kubepods/pod{UID}/c"),
    ],
)
def test_a_kubelet_with_a_root_of_its_own_is_known_by_the_agents_own_place(own: str, peer: str) -> None:
    assert pod_uid(peer, own) == UID
    assert pod_uid(peer) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/",
        "0::/user.slice/user-1000.slice/session-4.scope",
        "0::/system.slice/sshd.service",
        # A user of the host names a group of its own like a pod's.
        f"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{OTHER}/c",
        f"0::/user.slice/kubepods.slice/kubepods-pod{SYSTEMD_OTHER}.slice",
        f"0::/pod{OTHER}/c",
        f"0::/burstable/pod{OTHER}/c",
        f"0::/../../../../user.slice/kubepods/pod{OTHER}",
        f"0::/../../../../system.slice/pod{OTHER}",
        f"0::/kubepods/x/pod{OTHER}",
        f"0::/kubepods-pod{OTHER}",
        f"0::/kubepods/pod{OTHER}extra/c",
        f"0::/kubepods/pod{OTHER.upper()}/c",
        # Hierarchies that contradict each other.
        f"1:pids:/kubepods/pod{UID}/c\n2:cpu:/kubepods/pod{OTHER}/c",
        "no colon at all\n::\n0",
    ],
)
def test_what_is_no_pod(text: str) -> None:
    assert pod_uid(text, "0::/kubepods/burstable/podAGENT/c") is None


@pytest.mark.parametrize(
    "below", [f"/kubepods/pod{OTHER}", f"/pod{OTHER}/c", f"/kubepods-pod{SYSTEMD_OTHER}.slice/c", f"/../pod{OTHER}"]
)
@pytest.mark.parametrize(
    "place", [f"/kubepods/burstable/pod{UID}/c", f"/../../pod{UID}/c", f"/kubepods.slice/kubepods-pod{SYSTEMD}.slice/c"]
)
def test_groups_that_a_pod_nests_in_its_own_change_nothing(place: str, below: str) -> None:
    assert pod_uid(f"0::{place}{below}") == UID


@given(st.text(max_size=300), st.text(max_size=100))
def test_whatever_the_text_it_is_a_uid_or_nothing(text: str, own: str) -> None:
    found = pod_uid(text, own)
    assert found is None or len(found) in (32, 36)


def test_a_process_that_ended_is_nobody(tmp_path: Path) -> None:
    """Its connection may live on in a child; its number may be given to another process."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        program = (
            "import os, socket, sys, time\n"
            "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "peer.connect(sys.argv[1])\n"
            "if os.fork() == 0:\n    time.sleep(5)\n"
            "print(os.getpid(), flush=True)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        connection, _ = listener.accept()
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.wait()
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "cgroup").write_text(f"0::/kubepods/pod{UID}/c\n")
        with pytest.raises(UnknownPeer, match="ended"):
            identify(connection, tmp_path / "proc")
        connection.close()


def test_the_kernel_says_who_connects_not_the_peer(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = tmp_path / str(os.getpid())
    folder.mkdir()
    (folder / "cgroup").write_text(f"0::/kubepods/pod{UID}/c\n")
    with ours, theirs:
        found = identify(ours, tmp_path)
    assert (found.pid, found.pod_uid) == (os.getpid(), UID)
