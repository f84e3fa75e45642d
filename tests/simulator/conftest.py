"""Simulated nodes for the simulator's own tests."""

from __future__ import annotations

from perseus_simulator.testing import example_profile, simulated_node, simulator_environment, simulator_library

__all__ = ["example_profile", "simulated_node", "simulator_environment", "simulator_library"]
