"""Fixtures of the testbed's own tests: a machine that is empty, and an image that brings Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.cluster import Cluster
from testbed.folders import Folders
from testbed.site import Site

sys.path.insert(0, str(Path(__file__).parent))

from machine import Machine


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The site of a testbed that does not run."""
    return Site(Folders(cache=tmp_path / "cache", state=tmp_path / "state"))


@pytest.fixture(scope="module")
def machine(cluster: Cluster) -> Iterator[Machine]:
    """An empty machine whose cache is filled; everything on it ends with the tests of a module."""
    empty = Machine()
    yield empty
    empty.end()


@pytest.fixture(scope="session")
def python_image(cluster: Cluster) -> str:
    """An image of the project, for pods that run a line of Python; one that is there is left as it is."""
    from testbed.containers import image_names
    from testbed.images import build_images

    present = image_names(cluster.site, cluster.binaries)
    # Building would take the images of a running installation away whenever the checkout has changed since.
    found = sorted(name for name in present if name.startswith("localhost/perseus-operator:"))
    return found[0] if found else f"localhost/perseus-operator:{build_images(print)}"
