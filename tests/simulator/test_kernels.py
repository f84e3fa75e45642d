"""Kernels on the simulated device: how long they take, what they cost, and what a clock does to both.

Every duration here is simulated, so that a busy machine makes no test fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from perseus_api.instructions import Instruction
from perseus_api.profile import parse_profile
from perseus_simulator.library import SimulatorError
from perseus_simulator.node import KernelClient, SimulatedNode
from perseus_simulator.testing import NodeFactory, example_profile

GPT3 = Path(__file__).resolve().parents[2] / "examples" / "profiles" / "gpt3-175b-a100-sxm"
FORWARD, BACKWARD = Instruction.FORWARD, Instruction.BACKWARD
BLOCKING_WATTS = 80.0  # of the example profile


def meanwhile(node: SimulatedNode, work: Callable[[], object]) -> threading.Thread:
    """Start work in a thread and return when the first GPU runs a kernel of it."""
    thread = threading.Thread(target=work)
    thread.start()
    while not node.gpus[0].status().running:
        assert thread.is_alive()
        time.sleep(0.001)
    return thread


def test_a_kernel_takes_and_costs_what_the_profile_measured_at_each_clock(simulated_node: NodeFactory) -> None:
    profile = parse_profile((GPT3 / "profile.csv").read_text(), (GPT3 / "header.json").read_text())
    node = simulated_node(profile=profile, time_scale=20.0)
    gpu = node.gpus[0]
    with KernelClient(node, gpu.uuid) as client:
        for key in ((0, FORWARD), (7, BACKWARD)):
            entries = profile.measurements[key]
            for entry in (entries[0], entries[len(entries) // 2], entries[-1]):
                gpu.foreign_lock(entry.frequency_megahertz, entry.frequency_megahertz)
                kernel = client.run(*key)
                assert kernel.mean_clock_megahertz == pytest.approx(entry.frequency_megahertz)
                assert kernel.simulated_seconds == pytest.approx(entry.time_seconds, rel=1e-6)
                assert kernel.joules == pytest.approx(entry.energy_joules, rel=1e-6)
                elapsed = (kernel.end_seconds - kernel.begin_seconds) * node.time_scale
                assert elapsed == pytest.approx(entry.time_seconds, rel=1e-6)


def test_kernels_and_the_blocked_time_between_them_add_up_to_the_device_energy(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=5.0)
    gpu = node.gpus[0]
    with KernelClient(node, gpu.uuid) as client:
        first = client.run(0, FORWARD)
        before = gpu.energy_joules
        kernels = [client.run(stage, kind) for stage in (0, 1) for kind in (FORWARD, BACKWARD)]
        spent = gpu.energy_joules - before
        after = time.clock_gettime(time.CLOCK_MONOTONIC)
    work = sum(kernel.joules for kernel in kernels)
    most_blocked = (after - first.end_seconds) * 5.0 - sum(kernel.simulated_seconds for kernel in kernels)
    assert work <= spent <= work + BLOCKING_WATTS * most_blocked + 1e-6


def test_between_two_measured_clocks_time_and_energy_lie_on_the_line(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=10.0)
    fast, slow = (node.expected(0, FORWARD, clock) for clock in (1410, 1200))
    node.gpus[0].foreign_lock(1305, 1305)
    with KernelClient(node, node.gpus[0].uuid) as client:
        kernel = client.run(0, FORWARD)
    assert kernel.simulated_seconds == pytest.approx((fast[0] + slow[0]) / 2)
    assert kernel.joules == pytest.approx((fast[1] + slow[1]) / 2)


def test_below_the_measured_clocks_the_time_grows_and_the_power_stays(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=10.0)
    lowest, below = (node.expected(0, FORWARD, clock) for clock in (810, 405))
    assert below[0] == pytest.approx(2 * lowest[0])
    assert below[1] / below[0] == pytest.approx(lowest[1] / lowest[0])


def test_a_clock_set_during_a_kernel_holds_for_the_rest_of_it(simulated_node: NodeFactory) -> None:
    node = simulated_node(profile=example_profile(seconds=0.4))
    gpu = node.gpus[0]
    kernels = []
    with KernelClient(node, gpu.uuid) as client:
        thread = meanwhile(node, lambda: kernels.append(client.run(0, FORWARD)))
        gpu.foreign_lock(810, 810)
        thread.join()
    fast, slow = (node.expected(0, FORWARD, clock) for clock in (1410, 810))
    (kernel,) = kernels
    assert fast[0] < kernel.simulated_seconds < slow[0]
    # What part of its work it did at each clock follows from its time; energy and mean clock must agree with it.
    slow_share = (kernel.simulated_seconds - fast[0]) / (slow[0] - fast[0])
    assert kernel.joules == pytest.approx(fast[1] + slow_share * (slow[1] - fast[1]), rel=1e-6)
    clock_seconds = 1410 * fast[0] * (1 - slow_share) + 810 * slow[0] * slow_share
    assert kernel.mean_clock_megahertz == pytest.approx(clock_seconds / kernel.simulated_seconds, rel=1e-6)


def test_a_clock_change_comes_into_force_after_its_delay(simulated_node: NodeFactory) -> None:
    # The delay outlasts the first kernel whatever the machine does, and the second one waits the whole of it.
    node = simulated_node(profile=example_profile(seconds=5.0), clock_change_delay_seconds=2.0, time_scale=10.0)
    gpu = node.gpus[0]
    with KernelClient(node, gpu.uuid) as client:
        gpu.foreign_lock(810, 810)
        assert gpu.locked_range() == (810, 810)
        assert gpu.status().clock_changes == 0
        kernel = client.run(0, FORWARD)
        assert gpu.status().clock_changes == 1
        assert client.run(0, FORWARD).mean_clock_megahertz == pytest.approx(810)
    assert 810 < kernel.mean_clock_megahertz < 1410


def test_heat_makes_a_kernel_so_much_longer_and_costs_the_power_of_waiting(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=10.0)
    gpu = node.gpus[0]
    seconds, joules = node.expected(0, BACKWARD, 1410)
    gpu.inject(slowdown=1.2)
    with KernelClient(node, gpu.uuid) as client:
        hot = client.run(0, BACKWARD)
        gpu.clear()
        cool = client.run(0, BACKWARD)
    assert hot.simulated_seconds == pytest.approx(1.2 * seconds)
    assert hot.joules == pytest.approx(joules + 0.2 * seconds * BLOCKING_WATTS)
    assert (cool.simulated_seconds, cool.joules) == pytest.approx((seconds, joules))


def test_a_power_cap_holds_the_clock_down_below_the_lock(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=10.0)
    gpu = node.gpus[0]
    with KernelClient(node, gpu.uuid) as client:
        gpu.inject(power_cap_watts=220.0)
        capped = client.run(0, FORWARD)
        assert capped.mean_clock_megahertz < 1410
        assert capped.joules / capped.simulated_seconds <= 220.0
        seconds, joules = node.expected(0, FORWARD, int(capped.mean_clock_megahertz) + 15)
        assert joules / seconds > 220.0  # one step more would be too much
        gpu.foreign_lock(810, 810)  # below the cap: the lock decides
        assert client.run(0, FORWARD).mean_clock_megahertz == pytest.approx(810)


def test_the_device_says_that_a_cap_holds_the_clock_down_while_the_kernel_runs(simulated_node: NodeFactory) -> None:
    node = simulated_node(profile=example_profile(seconds=0.5))
    gpu = node.gpus[0]
    gpu.inject(power_cap_watts=220.0)
    with KernelClient(node, gpu.uuid) as client:
        thread = meanwhile(node, lambda: client.run(0, BACKWARD))
        status = gpu.status()
        thread.join()
    assert status.event_reasons == 0x4
    assert status.held_clock_megahertz < 1410
    assert status.power_watts <= 220.0


def test_fixed_work_takes_the_same_time_at_any_clock(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=10.0)
    node.gpus[0].foreign_lock(210, 210)
    with KernelClient(node, node.gpus[0].uuid) as client:
        kernel = client.run_fixed(0.2, 150.0)
        assert (kernel.simulated_seconds, kernel.joules) == pytest.approx((0.2, 30.0))
        for seconds, watts in ((-1.0, 1.0), (1.0, float("nan")), (float("inf"), 1.0)):
            with pytest.raises(SimulatorError, match="out of range"):
                client.run_fixed(seconds, watts)


def test_two_kernels_at_once_share_the_device(simulated_node: NodeFactory) -> None:
    node = simulated_node(profile=example_profile(seconds=0.3))
    gpu = node.gpus[0]
    alone, _ = node.expected(0, FORWARD, 1410)
    kernels = []
    with KernelClient(node, gpu.uuid) as one, KernelClient(node, gpu.uuid) as two:
        thread = meanwhile(node, lambda: kernels.append(one.run(0, FORWARD)))
        kernels.append(two.run(0, FORWARD))
        thread.join()
    assert all(kernel.simulated_seconds > alone for kernel in kernels)
    # Together they kept the device busy for the work of two, and no longer.
    busy = max(kernel.end_seconds for kernel in kernels) - min(kernel.begin_seconds for kernel in kernels)
    assert busy == pytest.approx(2 * alone, rel=1e-6)


def test_a_gpu_lost_in_the_middle_ends_the_kernel_and_no_other_gpus(simulated_node: NodeFactory) -> None:
    node = simulated_node(gpus=2, profile=example_profile(seconds=30.0))
    lost, well = node.gpus
    problems = []

    def run() -> None:
        with pytest.raises(SimulatorError) as raised:
            client.run(0, BACKWARD)
        problems.append(str(raised.value))

    with KernelClient(node, lost.uuid) as client, KernelClient(node, well.uuid) as other:
        thread = meanwhile(node, run)
        lost.inject(lost=True)
        thread.join(timeout=20)
        assert not thread.is_alive()
        assert other.run_fixed(0.01, 100.0).joules == pytest.approx(1.0)
    assert "fell off the bus" in problems[0]
    with pytest.raises(SimulatorError, match="fell off the bus"):
        KernelClient(node, lost.uuid)
    lost.clear()
    with KernelClient(node, lost.uuid) as client:
        client.run_fixed(0.01, 100.0)


def test_an_instruction_that_the_profile_does_not_hold_is_refused_by_name(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    with (
        KernelClient(node, node.gpus[0].uuid) as client,
        pytest.raises(SimulatorError, match=r"stage 9 forward.*does not hold"),
    ):
        client.run(9, FORWARD)
