"""Which tests run beside which, where pytest-xdist spreads them: `make test`.

There is one cluster, so its tests keep to one worker, in their order and before all others: they mostly wait. The
others are spread by file over the remaining workers, and run only where the cluster's processes leave a core idle:
times are measured there. Not by marks (`--dist loadgroup`): pytest-xdist 3.8 does not find them under pytest 9.2.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

ON_THE_CLUSTER = ("tests/cluster/", "tests/crd/", "tests/testbed/")


def lane(nodeid: str) -> str:
    """Return what a test must keep to one worker with: the cluster, or its file."""
    return "cluster" if nodeid.startswith(ON_THE_CLUSTER) else nodeid.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread the tests by lane."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        """One worker for a lane."""

        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid)

    return Lanes(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest lane."""
    items.sort(key=lambda item: lane(item.nodeid) != "cluster")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the processes of other tests give way to those on the cluster."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        policy = os.SCHED_OTHER if lane(item.nodeid) == "cluster" else os.SCHED_IDLE
        with contextlib.suppress(PermissionError):  # A sandbox may forbid it: then all run alike.
            os.sched_setscheduler(0, policy, os.sched_param(0))
