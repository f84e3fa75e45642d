"""A bare control plane for the operator's tests: real etcd and kube-apiserver, nobody else who writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bare import BareCluster, OperatorProcess, bare_cluster, free_port
from real_prometheus import PrometheusServer
from training import MetricsPage


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """etcd and an API server of their own on loopback, with the CRD and the operator's namespace."""
    with bare_cluster(tmp_path_factory.mktemp("bare")) as cluster:
        yield cluster


@pytest.fixture
def operator_process(bare: BareCluster) -> Iterator[OperatorProcess]:
    """The operator as a process of its own, against the bare control plane; not started yet."""
    process = OperatorProcess(bare, free_port())
    yield process
    process.kill()


@pytest.fixture
def operator(operator_process: OperatorProcess) -> OperatorProcess:
    """The operator, started."""
    operator_process.start()
    return operator_process


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    """A page of metrics of trainings that exist as metrics only."""
    served = MetricsPage(free_port())
    yield served
    served.close()


@pytest.fixture
def prometheus(page: MetricsPage, tmp_path: Path) -> Iterator[PrometheusServer]:
    """A real Prometheus that scrapes the page every second; not started yet."""
    server = PrometheusServer(tmp_path / "prometheus", free_port(), page.port)
    yield server
    server.stop()


@pytest.fixture
def watching(bare: BareCluster, prometheus: PrometheusServer, operator_process: OperatorProcess) -> OperatorProcess:
    """The operator, asking that Prometheus."""
    prometheus.start()
    operator_process.environment["PERSEUS_PROMETHEUS_URL"] = prometheus.url
    operator_process.start()
    return operator_process
