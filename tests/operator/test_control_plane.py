"""A control plane starts beside others, or says at once what keeps it from starting."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness import controlplane
from harness.controlplane import ControlPlane, free_port
from testbed.errors import TestbedError


def test_no_port_is_given_twice_even_while_nobody_listens_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = controlplane._SERVER_PORTS
    monkeypatch.setattr(controlplane, "_SERVER_PORTS", (first, first + 60))
    ports = [free_port() for _ in range(30)]
    assert len(set(ports)) == len(ports)


@pytest.mark.cluster
def test_a_part_that_ends_at_its_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", urlsplit(plane.url).port or 0))
        with pytest.raises(TestbedError, match=r"api of the control plane in .* has ended: .*address already in use"):
            plane.start()
    plane.stop()
