"""The product on the real cluster: installed once, watched through users' doors and the device's own state."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from perseus_api import names
from perseus_simulator.node import SimulatedNode

from demo.narration import Narrator
from demo.scenario import Run, run_scenario
from harness import rights
from harness.audit import AuditLog
from testbed.folders import Folders
from testbed.installation import Installation, install
from tests.lanes import alone

sys.path.insert(0, str(Path(__file__).parent))

from product import SIMULATOR_STATE, Training, small_training


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The chart installed with simulated GPUs, as ``make up`` does it.

    At the end: over all tests nobody of it, hooks and optimisation pods included, asked for more than it grants.
    """
    audit = AuditLog(Folders.from_environment().audit_log)
    yield install(lambda text: print(text, flush=True))
    assert rights.exceeded(audit, rights.rendered()) == []


@pytest.fixture(scope="session")
def demonstration(installation: Installation) -> Run:
    """The demonstration, played once for all who look at it; what an earlier one measured is measured again."""
    installation.kubectl("delete", "configmap", "-n", "default", "-l", names.LABEL_FINGERPRINT)
    return run_scenario(installation, Narrator(), undisturbed=alone)


@pytest.fixture
def gpus() -> Iterator[SimulatedNode]:
    """The node's simulated GPUs by the device's own state, without asking any program of ours."""
    node = SimulatedNode.open(SIMULATOR_STATE)
    yield node
    node.close()


@pytest.fixture
def training(installation: Installation) -> Iterator[Training]:
    """A small job on which the plan runs; gone afterwards."""
    with small_training(installation) as small:
        yield small
