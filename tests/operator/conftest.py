"""A bare control plane for the operator's tests: real etcd and kube-apiserver, nobody else who writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import scenario
from harness.controlplane import free_port, running
from harness.operator import OperatorProcess
from harness.scenario import Stage

sys.path.insert(0, str(Path(__file__).parent))

from bare import BareCluster


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """etcd and an API server of their own on loopback, with the CRD and the operator's namespace."""
    with running(tmp_path_factory.mktemp("bare")) as plane:
        yield BareCluster(plane)


@pytest.fixture
def operator(bare: BareCluster) -> Iterator[OperatorProcess]:
    """The operator as a process of its own, against the bare control plane."""
    process = OperatorProcess(bare.plane.kubeconfig, bare.folder / "operator.log", free_port())
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A control plane with the garbage collector, a proxy before it, Prometheus, and an operator behind the proxy."""
    with scenario.stage(tmp_path_factory.mktemp("stage")) as found:
        yield found
