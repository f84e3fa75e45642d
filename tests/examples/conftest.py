"""Fixtures of the examples' tests: the simulated node, and what tests/agent knows of running a real agent."""

from __future__ import annotations

import sys
from pathlib import Path

from perseus_simulator.testing import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
