"""Which tests run beside which, where pytest-xdist spreads them: `make test`.

There is one cluster, so its tests keep to one worker, in their order and before all others: they mostly wait. The
others are spread by file over the remaining workers, and give way where the cluster's processes want a core: times are
measured there. What must not be disturbed at all waits until they pause (`alone`). Not by marks
(`--dist loadgroup`): pytest-xdist 3.8 does not find them under pytest 9.2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NICENESS = 10
ALONE = "demonstration"  # the fixture that lets all others pause
ON_THE_CLUSTER = ("tests/cluster/", "tests/crd/", "tests/testbed/")
# Whoever wants to be alone holds the gate, so that no test begins, until those that run have ended.
_GATE, _RUNNING = (Path(tempfile.gettempdir()) / f"perseus-tests-{os.getuid()}-{name}" for name in ("gate", "running"))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let no test of another worker run meanwhile."""
    with _held(_GATE, fcntl.LOCK_EX), _held(_RUNNING, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _beside_others() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with _held(_GATE, fcntl.LOCK_EX):
            stack.enter_context(_held(_RUNNING, fcntl.LOCK_SH))
        yield


@contextlib.contextmanager
def _held(path: Path, kind: int) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            # Closing would not do: a process that a test forked and left behind has the file open, too.
            fcntl.flock(file, fcntl.LOCK_UN)


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
    """Begin with the longest lane, and end it with what lets the others pause: they have nearly ended by then."""
    items.sort(key=lambda item: (lane(item.nodeid) != "cluster", ALONE in getattr(item, "fixturenames", ())))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let the processes of other tests give way to those on the cluster, or pause."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    on_the_cluster = lane(item.nodeid) == "cluster"
    if not on_the_cluster:
        # Not the class of idle processes: under a busy minute of the cluster those get nothing, and wait in vain.
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    elif os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.nullcontext() if on_the_cluster else _beside_others():
        return (yield)
