"""The simulated NVML under the real pynvml, each user a process of its own, as on a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_simulator.node import KernelClient, SimulatedNode
from perseus_simulator.testing import NodeFactory, simulator_environment

F = Instruction.FORWARD


def nvml(node: SimulatedNode, script: str) -> Any:
    """Run a script with `pynvml as n` and `g(i)` for handles in a process; return what it leaves in `out`."""
    text = (
        "import json, pynvml as n\nn.nvmlInit()\ng = lambda i: n.nvmlDeviceGetHandleByIndex(i)\n"
        "def attempt(call, *a):\n    try:\n        return call(*a)\n"
        "    except n.NVMLError as e:\n        return str(e)\n"
        f"{script}\nprint(json.dumps(out))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env=simulator_environment(node), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_user_sees_what_a_real_device_shows(simulated_node: NodeFactory) -> None:
    node = simulated_node(gpus=2)
    out = nvml(
        node,
        "h = n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(g(1)))\n"
        "out = [n.nvmlDeviceGetCount(), n.nvmlDeviceGetUUID(h), n.nvmlDeviceGetName(h), n.nvmlDeviceGetIndex(h),"
        " n.nvmlDeviceGetMigMode(h), n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM),"
        " n.nvmlDeviceGetSupportedGraphicsClocks(h, n.nvmlDeviceGetSupportedMemoryClocks(h)[0])]",
    )
    assert out[:6] == [2, node.gpus[1].uuid, "Simulated A100", 1, [0, 0], 1410]
    assert out[6] == list(range(1410, 209, -15))


def test_a_lock_outlives_the_process_that_set_it_and_has_no_getter(simulated_node: NodeFactory) -> None:
    node = simulated_node(gpus=2)
    assert (
        nvml(node, "n.nvmlDeviceSetGpuLockedClocks(g(0), 1200, 1200)\nout = hasattr(n, 'nvmlDeviceGetGpuLockedClocks')")
        is False
    )
    assert node.gpus[0].locked_range() == (1200, 1200)
    assert node.gpus[1].locked_range() is None
    nvml(node, "out = n.nvmlDeviceResetGpuLockedClocks(g(0))")
    assert node.gpus[0].locked_range() is None


def test_a_lock_survives_sigkill(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    script = (
        "import pynvml as n, signal, os\nn.nvmlInit()\n"
        "n.nvmlDeviceSetGpuLockedClocks(n.nvmlDeviceGetHandleByIndex(0), 990, 990)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=simulator_environment(node), check=False)
    assert done.returncode == -signal.SIGKILL
    assert node.gpus[0].locked_range() == (990, 990)


def test_the_energy_counter_moves_in_steps(simulated_node: NodeFactory) -> None:
    node = simulated_node(counter_refresh_seconds=0.2)
    out = nvml(
        node,
        "import time\nout = []\nend = time.monotonic() + 1.0\n"
        "while time.monotonic() < end:\n"
        "    out.append(n.nvmlDeviceGetTotalEnergyConsumption(g(0)))\n    time.sleep(0.005)",
    )
    assert 3 <= len(set(out)) - 1 <= 6
    assert out == sorted(out)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("no_permission", "Insufficient Permissions"), ("not_supported", "Not Supported"), ("unknown", "Unknown Error")],
)
def test_refused_locks_answer_as_nvml_does(simulated_node: NodeFactory, fault: str, error: str) -> None:
    node = simulated_node(gpus=2)
    node.gpus[0].inject(**{fault: True})
    out = nvml(node, "out = [attempt(n.nvmlDeviceSetGpuLockedClocks, g(i), 990, 990) for i in (0, 1)]")
    assert out == [error, None]
    assert node.gpus[0].locked_range() is None
    node.gpus[0].clear()
    assert nvml(node, "out = attempt(n.nvmlDeviceSetGpuLockedClocks, g(0), 990, 990)") is None


def test_a_lost_gpu_takes_no_other_with_it(simulated_node: NodeFactory) -> None:
    node = simulated_node(gpus=2)
    node.gpus[0].inject(lost=True)
    out = nvml(
        node,
        "out = [attempt(n.nvmlDeviceGetHandleByIndex, 0), attempt(n.nvmlDeviceGetPowerUsage, g(1)) is not None,"
        f" attempt(n.nvmlDeviceGetHandleByUUID, '{node.gpus[0].uuid}')]",
    )
    assert out == ["GPU is lost", True, "GPU is lost"]


def test_init_can_answer_unknown_error_until_it_heals(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    script = "import pynvml as n\ntry:\n    n.nvmlInit(); print('ok')\nexcept n.NVMLError as e:\n    print(e)"

    def init() -> str:
        environment = simulator_environment(node)
        return subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    node.inject_init_unknown(True)
    assert init() == "Unknown Error"
    node.inject_init_unknown(False)
    assert init() == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_only_administrators_set_clocks_where_the_driver_says_so(simulated_node: NodeFactory) -> None:
    node = simulated_node(administrators_only=True)
    for folder in (node.path.parent, *node.path.parent.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    out = nvml(
        node,
        "import os\nout = [attempt(n.nvmlDeviceSetGpuLockedClocks, g(0), 990, 990)]\nos.setuid(65532)\n"
        "out += [attempt(n.nvmlDeviceSetGpuLockedClocks, g(0), 990, 990)]",
    )
    assert out == [None, "Insufficient Permissions"]


def test_an_instruction_takes_time_and_energy_of_the_clock_in_force(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=5)
    gpu = node.gpus[0]
    with KernelClient(node, gpu.uuid) as client:
        for clock in (1410, 1200, 1000):
            gpu.foreign_lock(clock, clock)
            kernel = client.run(0, F)
            held = clock - clock % 15 if clock % 15 else clock
            seconds, joules = node.expected(0, F, held)
            assert kernel.simulated_seconds == pytest.approx(seconds, rel=1e-6)
            assert kernel.joules == pytest.approx(joules, rel=1e-6)
            assert kernel.mean_clock_megahertz == pytest.approx(held)


def test_a_change_in_the_middle_is_a_mixture(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    gpu = node.gpus[0]
    script = (
        "import sys, time\nfrom perseus_simulator.node import SimulatedNode\n"
        "node = SimulatedNode.open(sys.argv[1])\nwhile not node.gpus[0].status().running: time.sleep(0.001)\n"
        "time.sleep(0.02)\nnode.gpus[0].foreign_lock(810, 810)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(node.path)], env=simulator_environment(node))
    with KernelClient(node, gpu.uuid) as client:
        kernels = [client.run(0, Instruction.BACKWARD) for _ in range(30) if gpu.locked_range() is None]
    assert other.wait(10) == 0
    fast, slow = (node.expected(0, Instruction.BACKWARD, clock)[0] for clock in (1410, 810))
    assert fast < kernels[-1].simulated_seconds < slow


def test_heat_stretches_the_same_work(simulated_node: NodeFactory) -> None:
    node = simulated_node(time_scale=5)
    node.gpus[0].inject(slowdown=1.2)
    with KernelClient(node, node.gpus[0].uuid) as client:
        kernel = client.run(0, F)
        reasons = nvml(node, "out = n.nvmlDeviceGetCurrentClocksEventReasons(g(0))")
    assert kernel.simulated_seconds == pytest.approx(1.2 * node.expected(0, F, 1410)[0], rel=1e-6)
    assert reasons & 0x60


def test_a_power_cap_holds_the_clock_below_what_was_requested(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    gpu = node.gpus[0]
    gpu.inject(power_cap_watts=200)
    with KernelClient(node, gpu.uuid) as client:
        kernel = client.run(0, F)
    assert kernel.mean_clock_megahertz < 1410
    assert kernel.joules / kernel.simulated_seconds <= 200


def test_waiting_costs_the_blocking_power_and_an_idle_gpu_less(simulated_node: NodeFactory) -> None:
    node = simulated_node(idle_watts=50)
    gpu = node.gpus[0]
    assert gpu.status().power_watts == 50
    with KernelClient(node, gpu.uuid):
        assert gpu.status().power_watts == 80
    assert gpu.status().power_watts == 50


def test_a_killed_process_frees_its_gpu(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    script = (
        "import sys\nfrom perseus_simulator.node import *\nfrom perseus_api.instructions import Instruction\n"
        "node = SimulatedNode.open(sys.argv[1])\nclient = KernelClient(node, node.gpus[0].uuid)\n"
        "print('on', flush=True)\nwhile True: client.run(0, Instruction.FORWARD)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(node.path)], env=simulator_environment(node), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert node.gpus[0].status().clients == 1
    process.kill()
    process.wait()
    process.stdout.close()
    time.sleep(0.1)  # how often the model looks for dead clients: 50 ms
    assert node.gpus[0].status().clients == 0
    with KernelClient(node, node.gpus[0].uuid) as client:
        assert client.run(0, F).simulated_seconds == pytest.approx(node.expected(0, F, 1410)[0], rel=1e-6)


def test_processes_killed_in_the_middle_of_calls_never_wedge_the_device(simulated_node: NodeFactory) -> None:
    node = simulated_node()
    script = (
        "import sys, itertools\nfrom perseus_simulator.node import SimulatedNode\n"
        "node = SimulatedNode.open(sys.argv[1])\nprint('on', flush=True)\n"
        "for i in itertools.count(): node.gpus[0].foreign_lock(300 + i % 900, 1300); node.gpus[0].status()"
    )
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(node.path)], env=simulator_environment(node), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.001 * attempt)
        process.kill()
        process.wait()
        process.stdout.close()
    node.gpus[0].foreign_reset()
    assert node.gpus[0].locked_range() is None


Step = st.one_of(st.none(), st.tuples(st.integers(210, 1410), st.integers(210, 1410)).map(sorted))


@given(st.lists(Step, min_size=1, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_newest_request_is_what_holds(simulated_node: NodeFactory, steps: list[Any]) -> None:
    node = simulated_node()
    gpu = node.gpus[0]
    for step in steps:
        if step is None:
            gpu.foreign_reset()
        else:
            gpu.foreign_lock(*step)
    newest = steps[-1]
    assert gpu.locked_range() == (None if newest is None else tuple(newest))
    with KernelClient(node, gpu.uuid):
        held = gpu.status().held_clock_megahertz
    assert held <= (1410 if newest is None else newest[1])
    assert held > (1410 if newest is None else newest[1]) - 15 or held == 210


def test_a_state_of_something_else_is_refused(simulated_node: NodeFactory, tmp_path: Any) -> None:
    simulated_node()
    path = tmp_path / "no-state"
    path.write_bytes(b"\0" * 100_000)
    with pytest.raises(Exception, match="not a state file of this version"):
        SimulatedNode.open(path)
