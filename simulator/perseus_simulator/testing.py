"""pytest fixtures over the simulated GPU; ``from perseus_simulator.testing import *`` in a conftest.

NVML's users run as processes of their own, because a process loads one libnvidia-ml and keeps it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile, ProfileHeader

from perseus_simulator.library import CHECKOUT_LIBRARY, ENV_LIBRARY, ENV_STATE
from perseus_simulator.node import SimulatedNode

__all__ = ["NodeFactory", "example_profile", "simulated_node", "simulator_environment", "simulator_library"]

NodeFactory = Callable[..., SimulatedNode]
_NATIVE = CHECKOUT_LIBRARY.parent.parent


@pytest.fixture(scope="session")
def simulator_library() -> Path:
    """The compiled library, made when it is stale."""
    with (_NATIVE / "Makefile").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-C", str(_NATIVE)], check=True)
    return CHECKOUT_LIBRARY


@pytest.fixture
def simulated_node(simulator_library: Path, tmp_path: Path) -> Iterator[NodeFactory]:
    """Make nodes in the test's folder: ``simulated_node(gpus=2, time_scale=10)``."""
    made: list[SimulatedNode] = []

    def make(gpus: int = 1, profile: Profile | None = None, **settings: object) -> SimulatedNode:
        path = tmp_path / f"simulated-node-{len(made)}"
        node = SimulatedNode.create(path, profile or example_profile(), gpus, **settings)  # type: ignore[arg-type]
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()


def simulator_environment(node: SimulatedNode) -> dict[str, str]:
    """Environment in which a process's NVML is this node."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(CHECKOUT_LIBRARY.parent),
        ENV_LIBRARY: str(CHECKOUT_LIBRARY),
        ENV_STATE: str(node.path),
    }


WHOLE = {Instruction.FORWARD: 1.0, Instruction.BACKWARD: 2.0}
SPLIT = {Instruction.FORWARD: 1.0, Instruction.BACKWARD_INPUT: 1.1, Instruction.BACKWARD_WEIGHT: 0.9}


def example_profile(
    stages: int = 2, seconds: float = 0.05, instructions: Mapping[Instruction, float] = MappingProxyType(WHOLE)
) -> Profile:
    """A small profile: time goes with 1/clock, power with clock squared above the blocking power (80 W).

    Args:
        stages: parts of the model.
        seconds: what a forward of the first takes at the highest clock.
        instructions: what there is of each stage, and how long it takes in forwards.
    """
    measurements: dict[tuple[int, Instruction], tuple[Measurement, ...]] = {}
    for stage in range(stages):
        for instruction, factor in instructions.items():
            entries = []
            for clock in (1410, 1200, 1005, 810):
                time = seconds * factor * (1 + 0.1 * stage) * 1410 / clock
                entries.append(Measurement(clock, time, time * (80 + 220 * (clock / 1410) ** 2)))
            measurements[stage, instruction] = tuple(entries)
    return Profile(ProfileHeader(gpu_model="Simulated A100", blocking_power_watts=80.0), measurements)
