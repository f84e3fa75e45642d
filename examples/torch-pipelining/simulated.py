"""For machines without GPUs: each forward and backward also runs on this rank's simulated GPU, and takes its time.

The device needs as long as its clock makes it, so a wrong clock is a longer iteration and a higher energy bill. Without
``PERSEUS_SIMULATOR_STATE`` in the environment, as on real GPUs, none of this is used.
"""

from __future__ import annotations

import os

import torch
from perseus_api import names
from perseus_api.instructions import Instruction
from perseus_simulator.library import ENV_STATE
from perseus_simulator.node import KernelClient, SimulatedNode
from torch import nn


class OnSimulatedGpu(nn.Module):
    """A stage that is as slow as the simulated GPU."""

    def __init__(self, module: nn.Module, stage: int) -> None:
        super().__init__()
        self.module = module
        self._stage = stage
        self._node = SimulatedNode.open(os.environ[ENV_STATE])
        uuid = os.environ.get(names.ENV_GPU_UUID) or os.environ[names.ENV_VISIBLE_DEVICES]
        self._gpu = KernelClient(self._node, uuid)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute, and wait for the device; the same when the gradient comes back."""
        output: torch.Tensor = self.module(hidden)
        self._gpu.run(self._stage, Instruction.FORWARD)
        if output.requires_grad:
            output.register_hook(self._backward)
        return output

    def _backward(self, _gradient: torch.Tensor) -> None:
        self._gpu.run(self._stage, Instruction.BACKWARD)


def slowed(module: nn.Module, stage: int) -> nn.Module:
    """Return the stage as slow as the simulated GPU, or as it is where there is none."""
    return OnSimulatedGpu(module, stage) if os.environ.get(ENV_STATE) else module
