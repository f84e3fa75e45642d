"""Processes that die in the middle of kernels and calls, or fork: the device goes on."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time

import pytest
from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient, SimulatedGpu, SimulatedNode
from perseus_simulator.testing import NodeFactory, example_profile, simulator_environment

# Works on the device as fast as it can: locks, energy reads and kernels.
HAMMER = """
import sys
import pynvml
from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient, SimulatedNode

pynvml.nvmlInit()
node = SimulatedNode.open(sys.argv[1])
handle = pynvml.nvmlDeviceGetHandleByUUID(node.gpus[0].uuid)
with KernelClient(node, node.gpus[0].uuid) as client:
    print("runs", flush=True)
    while True:
        for clock in (810, 1005, 1410):
            pynvml.nvmlDeviceSetGpuLockedClocks(handle, clock, clock)
            client.run(0, Instruction.FORWARD)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            pynvml.nvmlDeviceResetGpuLockedClocks(handle)
"""
KERNEL = """
import sys
from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient, SimulatedNode

node = SimulatedNode.open(sys.argv[1])
with KernelClient(node, node.gpus[0].uuid) as client:
    print("runs", flush=True)
    client.run(0, Instruction.BACKWARD)
"""


def start(node: SimulatedNode, program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(node.path)],
        env=simulator_environment(node),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def wait_until_unused(gpu: SimulatedGpu) -> None:
    """Dead processes are looked for now and then only."""
    deadline = time.monotonic() + 20
    while gpu.status().clients:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_process_gives_its_gpu_back_in_the_middle_of_a_kernel(simulated_node: NodeFactory) -> None:
    node = simulated_node(profile=example_profile(seconds=600.0), idle_watts=55.0)
    gpu = node.gpus[0]
    process = start(node, KERNEL)
    deadline = time.monotonic() + 20
    while not gpu.status().running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    end(process)
    wait_until_unused(gpu)
    status = gpu.status()
    assert (status.running, status.kernels, status.power_watts) == (0, 0, 55.0)


def test_death_in_the_middle_of_any_call_never_wedges_the_device(simulated_node: NodeFactory) -> None:
    node = simulated_node(profile=example_profile(seconds=0.0005), counter_refresh_seconds=0.001)
    gpu = node.gpus[0]
    chance = random.Random(20261124)
    seen = gpu.status()
    for _ in range(8):
        processes = [start(node, HAMMER) for _ in range(2)]
        time.sleep(chance.uniform(0.001, 0.08))
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
        answered = threading.Event()
        threading.Thread(target=lambda done=answered: (gpu.status(), done.set()), daemon=True).start()
        assert answered.wait(20), "the device does not answer any more"
        now = gpu.status()
        assert now.kernels > seen.kernels
        assert now.energy_joules > seen.energy_joules
        assert now.published_joules <= now.energy_joules
        seen = now
    gpu.foreign_reset()
    with KernelClient(node, gpu.uuid) as client:
        kernel = client.run(0, Instruction.FORWARD)
    assert (kernel.simulated_seconds, kernel.joules) == pytest.approx(node.expected(0, Instruction.FORWARD, 1410))
    wait_until_unused(gpu)


def test_a_client_may_not_be_used_by_a_forked_child(simulated_node: NodeFactory) -> None:
    program = """
import os, sys
from perseus_simulator.library import SimulatorError
from perseus_simulator.node import KernelClient, SimulatedNode

node = SimulatedNode.open(sys.argv[1])
with KernelClient(node, node.gpus[0].uuid) as client:
    child = os.fork()
    if child == 0:
        try:
            client.run_fixed(0.001, 100.0)
        except SimulatorError:
            client.close()
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    client.run_fixed(0.001, 100.0)
    print(os.waitstatus_to_exitcode(status))
"""
    node = simulated_node()
    answer = subprocess.run(
        [sys.executable, "-c", program, str(node.path)],
        env=simulator_environment(node), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert answer.stdout == "7\n"
