"""pytest fixtures over the testbed: a real cluster, a namespace of one's own, a real Prometheus; and lanes of tests.

Everything is brought up at the first use and left up afterwards: the next run starts in seconds. Imports are lazy,
so that tests which need no cluster pay nothing.

There is one cluster, so with pytest-xdist its tests keep to one worker, in their order, before all others: they mostly
wait. The others are spread over the remaining workers by file, and give way to the cluster's processes.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testbed.cluster import Cluster

ON_THE_CLUSTER = frozenset({"cluster", "installation"})
OTHERS_NICENESS = 5


def _on_the_cluster(item: pytest.Item) -> bool:
    return not ON_THE_CLUSTER.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's lane, those on the cluster first."""
    items.sort(key=lambda item: not _on_the_cluster(item))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("cluster" if _on_the_cluster(item) else item.nodeid.split("::")[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the processes of other tests give way to those on the cluster, whose times are looked at."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0 if _on_the_cluster(item) else OTHERS_NICENESS)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The running cluster."""
    from testbed.cluster import bring_up

    return bring_up(print)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace, deleted afterwards without waiting for it."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster) -> str:
    """The URL of a Prometheus that scrapes annotated pods every five seconds."""
    from testbed.prometheus import start_prometheus

    return start_prometheus(5.0, cluster.site.folders)
