"""pytest fixtures over the testbed: a real cluster, a namespace of one's own, a real Prometheus.

Everything is brought up at the first use and left up afterwards: the next run starts in seconds. Imports are lazy,
so that tests which need no cluster pay nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testbed.cluster import Cluster


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
