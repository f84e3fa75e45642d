"""Simulated nodes, for the tests that load NVML as the chart mounts it."""

from __future__ import annotations

from perseus_simulator.testing import *  # noqa: F403
