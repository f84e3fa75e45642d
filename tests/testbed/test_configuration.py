"""What the testbed derives without starting anything: names, addresses, certificates, scrape targets, refusals."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import binaries, certificates, controlplane, leftovers, node
from testbed.discovery import targets
from testbed.errors import RequirementError
from testbed.folders import DEFAULT_STATE, Folders
from testbed.service import tls_context
from testbed.site import SERVICE_NETWORK, Site

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Site(Folders(cache=Path("/cache"), state=DEFAULT_STATE))


@given(st.text("abcdefgh/-", min_size=1, max_size=30).map(lambda text: Path("/tmp", text.lstrip("/"))))
def test_a_second_testbed_shares_no_name_and_no_address_with_the_usual_one(state: Path) -> None:
    other = Site(Folders(cache=Path("/cache"), state=state))
    assert len(other.host_link) <= 15, "Linux cuts longer names of links"
    for attribute in ("identity", "namespace", "host_link", "kubelet_root", "certificates", "api_url"):
        assert getattr(other, attribute) != getattr(DEFAULT, attribute)
    network = ipaddress.ip_network(other.network)
    assert not network.overlaps(ipaddress.ip_network(DEFAULT.network))
    assert not network.overlaps(ipaddress.ip_network(SERVICE_NETWORK))
    fixed = [other.node_address, other.first_pod_address, other.last_pod_address, other.host_address]
    addresses = [ipaddress.ip_address(address) for address in fixed]
    assert all(address in network for address in addresses)
    assert addresses == sorted(set(addresses)), "the node's and the host's addresses are no pod's"


def test_the_folders_can_be_moved_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERSEUS_TESTBED_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PERSEUS_TESTBED_CACHE", str(tmp_path / "cache"))
    assert Folders.from_environment() == Folders(cache=tmp_path / "cache", state=tmp_path / "state")
    monkeypatch.delenv("PERSEUS_TESTBED_STATE")
    assert Folders.from_environment().state == DEFAULT_STATE


def test_servers_and_the_administrator_trust_each_other_by_the_testbeds_certificates(site: Site) -> None:
    certificates.create(site)
    serving = certificates.serving(site)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.authority(site).certificate))
    server.verify_flags &= ~ssl.VERIFY_X509_STRICT
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(serving.certificate, serving.key)
    subjects: list[Any] = []

    def answer(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with server.wrap_socket(connection, server_side=True) as secured:
                subjects.append(secured.getpeercert())
                secured.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        for name in (site.node_address, "kubernetes.default.svc"):
            with (
                socket.create_connection(listener.getsockname()) as plain,
                tls_context(site).wrap_socket(plain, server_hostname=name) as secured,
            ):
                assert secured.recv(5) == b"hello"
        thread.join()
    assert (("organizationName", "system:masters"),) in subjects[0]["subject"]


def test_keys_are_for_root_alone_and_made_once(site: Site) -> None:
    certificates.create(site)
    before = {path: path.read_bytes() for path in site.certificates.iterdir()}
    certificates.create(site)
    assert {path: path.read_bytes() for path in site.certificates.iterdir()} == before
    readable = [
        path for path in [*site.certificates.glob("*.key"), site.folders.kubeconfig] if path.stat().st_mode & 0o77
    ]
    assert readable == []


def test_every_file_named_by_a_flag_is_written(site: Site) -> None:
    certificates.create(site)
    controlplane.write_configuration(site)
    node.write_configuration(site)
    programs = binaries.locate(site.folders.cache)
    services = controlplane.services(site, programs) + node.services(site, programs)
    text = " ".join(argument for service in services for argument in service.arguments[1:])
    named = re.findall(rf"{site.folders.state}/(?:certificates|configuration)/[\w.-]+", text)
    assert len(named) > 10
    assert [name for name in named if not Path(name).exists()] == []


def pod(**changes: Any) -> dict[str, dict[str, Any]]:
    metadata = {"namespace": "team", "name": "rank-0", "annotations": {"prometheus.io/scrape": "true"}}
    status = {"phase": "Running", "podIP": "10.244.0.7"}
    return {"metadata": {**metadata, **changes.pop("metadata", {})}, "status": {**status, **changes.pop("status", {})}}


def test_a_pod_is_scraped_where_its_annotations_say() -> None:
    asked = {"prometheus.io/scrape": "true", "prometheus.io/port": "9410", "prometheus.io/path": "/energy"}
    assert targets([pod(metadata={"annotations": asked})]) == [
        {
            "targets": ["10.244.0.7:9410"],
            "labels": {"namespace": "team", "pod": "rank-0", "__metrics_path__": "/energy"},
        }
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"annotations": None}},
        {"metadata": {"annotations": {"prometheus.io/scrape": "false"}}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"phase": "Succeeded"}},
        {"status": {"podIP": None}},
    ],
)
def test_a_pod_that_does_not_ask_or_does_not_run_is_not_scraped(changes: dict[str, Any]) -> None:
    assert len(targets([pod()])) == 1
    assert targets([pod(**changes)]) == []


@given(
    st.permutations(
        [pod(metadata={"name": f"rank-{rank}"}, status={"podIP": f"10.244.0.{9 + rank}"}) for rank in range(5)]
    )
)
def test_the_order_in_which_pods_are_listed_changes_no_target(pods: list[dict[str, dict[str, Any]]]) -> None:
    assert targets(pods) == targets(list(reversed(pods)))


def test_another_kubelets_folder_is_refused_and_left_alone(site: Site) -> None:
    site.kubelet_root.mkdir(parents=True)
    (site.kubelet_root / "pods").mkdir()
    with pytest.raises(RequirementError, match="another kubelet"):
        leftovers.claim_kubelet_root(site)
    site.folders.logs.mkdir()
    (site.kubelet_root / "pods").rmdir()
    leftovers.claim_kubelet_root(site)
    leftovers.claim_kubelet_root(site)
    leftovers.remove_folders(site)
    assert not site.kubelet_root.exists()


def test_an_earlier_runs_note_of_the_kernels_settings_is_kept(site: Site) -> None:
    site.folders.state.mkdir()
    leftovers.remember_kernel_settings(site)
    note = site.folders.state / "kernel-settings.json"
    assert set(json.loads(note.read_text())) == {"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"}
    note.write_text('{"kernel/panic": "7"}')
    leftovers.remember_kernel_settings(site)
    assert json.loads(note.read_text()) == {"kernel/panic": "7"}


@pytest.mark.parametrize(
    ("wrapper", "path", "sentence"),
    [
        (["unshare", "--user"], None, "testbed: the testbed needs root"),
        ([], "{folder}", "testbed: Go >= 1.26 is needed to build Kubernetes, this is 1.25"),
    ],
)
def test_check_refuses_an_unfit_machine_in_one_sentence(
    tmp_path: Path, wrapper: list[str], path: str | None, sentence: str
) -> None:
    root = os.geteuid() == 0
    if path and not root:
        pytest.skip("a user who is not root hears of that first")
    (tmp_path / "go").write_text("#!/bin/sh\necho go version go1.25.3 linux/amd64\n")
    (tmp_path / "go").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin" if path else "/usr/bin:/bin"}
    done = subprocess.run(
        [*(wrapper if root else []), sys.executable, "-m", "testbed", "check"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1
