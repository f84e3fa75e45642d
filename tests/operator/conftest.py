"""A bare control plane for the operator's tests: real etcd and kube-apiserver, nobody else who writes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import scenario
from harness.controlplane import free_port, running
from harness.operator import OperatorProcess
from harness.scenario import Stage

sys.path.insert(0, str(Path(__file__).parent))

from bare import BareCluster
from measured import Agents
from training import MetricsPage

from harness.prometheus_server import PrometheusServer


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """etcd and an API server of their own on loopback, with the CRD and the operator's namespace."""
    with running(tmp_path_factory.mktemp("bare")) as plane:
        yield BareCluster(plane)


@pytest.fixture
def home(bare: BareCluster) -> Iterator[str]:
    """A namespace of the test's own; its jobs are freed and deleted afterwards."""
    with bare.own_namespace() as name:
        yield name


@pytest.fixture
def operator(bare: BareCluster) -> Iterator[OperatorProcess]:
    """The operator as a process of its own, against the bare control plane."""
    with OperatorProcess(bare.plane.operator_kubeconfig, bare.folder / "operator.log", free_port()) as process:
        yield process


@pytest.fixture
def agents(bare: BareCluster, home: str) -> Iterator[Callable[[str], Agents]]:
    """Make the agents of a job that measure a known device."""
    made: list[Agents] = []

    def make(job: str = "train") -> Agents:
        made.append(Agents(bare, home, job))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A control plane with the garbage collector, a proxy before it, Prometheus, and an operator behind the proxy."""
    with scenario.stage(tmp_path_factory.mktemp("stage")) as found:
        yield found


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
def watching(bare: BareCluster, prometheus: PrometheusServer) -> Iterator[OperatorProcess]:
    """The operator, asking that Prometheus."""
    prometheus.start()
    log = bare.folder / "operator.log"
    with OperatorProcess(
        bare.plane.operator_kubeconfig, log, free_port(), PERSEUS_PROMETHEUS_URL=prometheus.url
    ) as process:
        yield process
