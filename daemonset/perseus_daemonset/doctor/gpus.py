"""The driver and its GPUs: what NVML answers, which clocks there are, how often the energy counter moves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from perseus_daemonset.doctor.findings import Finding, note, well, wrong
from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.nvml import Nvml, NvmlGpu

WATCH_SECONDS = 1.2
PERIODS_WANTED = 8
_CAP_SYS_ADMIN = 1 << 21
_REMEDIES = {
    "library_not_found": (
        "libnvidia-ml.so.1 is not in this container. NVIDIA's container runtime brings it: set the chart's "
        "agent.runtimeClassName (often nvidia), or make that runtime the nodes' default. On nodes without that runtime "
        "set agent.driver.profile to Host, GpuOperator or Gke, by where the driver is; if it is set, "
        "agent.driver.library must name a library of this node's architecture"
    ),
    "driver_not_loaded": (
        "no NVIDIA driver is loaded on this node. If it has no GPU, keep the agent away by agent.nodeSelector; "
        "if it has, look at the driver's installation with nvidia-smi on the node"
    ),
    "unknown": (
        "the driver's device nodes are not usable from this container, often after a systemd reload on the node took "
        "them away. Delete this pod: a new one gets them again"
    ),
    "lib_rm_mismatch": "the driver was replaced under running programs. Delete this pod, or restart the node",
    "no_permission": "this container may not use the GPUs' device nodes: set agent.privileged=true, or see the runtime",
}
_SHARED = {"mig": "in MIG mode", "vgpu": "a vGPU", "mps": "shared by MPS"}


def look_at_gpus() -> Iterator[Finding]:
    """Look at NVML and every GPU."""
    yield look_at_capability()
    try:
        nvml = Nvml()
        driver, uuids, count = nvml.driver_version(), nvml.uuids(), nvml.count()
    except HardwareError as error:
        yield wrong("NVML", f"{error}. {_REMEDIES.get(error.code, 'See the driver on the node')}.")
        return
    if count > len(uuids):
        yield wrong("NVML", f"{count - len(uuids)} of {count} GPUs are lost: they come back when the node is restarted")
    if not count:
        yield wrong("NVML", f"driver {driver} answers and shows no GPU: NVIDIA_VISIBLE_DEVICES must be all")
        return
    yield well("NVML", f"driver {driver}, {len(uuids)} GPUs")
    with ThreadPoolExecutor(len(uuids) or 1) as pool:
        for found in pool.map(lambda uuid: list(_look_at(nvml, uuid)), uuids):
            yield from found


def look_at_capability(status: Path = Path("/proc/self/status")) -> Finding:
    """Look whether this process may set clocks: the driver asks for CAP_SYS_ADMIN, and nothing is set to find out."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            if int(line.split()[1], 16) & _CAP_SYS_ADMIN:
                return well("permission", "CAP_SYS_ADMIN is there, which the driver asks for before it sets clocks")
            return wrong("permission", "CAP_SYS_ADMIN is missing: add SYS_ADMIN to the chart's agent.capabilities")
    return note("permission", "the kernel does not tell this process's capabilities")


def _look_at(nvml: Nvml, uuid: str) -> Iterator[Finding]:
    try:
        gpu = nvml.gpu(uuid)
        shared = gpu.sharing()
        if shared:
            yield note(uuid, f"{gpu.name()}, {_SHARED[shared]}: it is left alone, only whole GPUs are served")
            return
        reading = gpu.read()
        told = f"{gpu.name()}, {_clocks(gpu)}, now at {reading.clock_megahertz} MHz and {reading.power_watts:.0f} W"
        reasons = [each for each in reading.event_reasons if each != "gpu_idle"]
        yield well(uuid, told + (f", held by {', '.join(reasons)}" if reasons else ""))
        yield _look_at_counter(gpu)
        counters = sorted(gpu.throttle_seconds())
        yield (
            well(uuid, f"counts throttle time by {', '.join(counters)}")
            if counters
            else note(uuid, "does not count throttle time: whether clocks are held is known from samples alone")
        )
    except HardwareError as error:
        yield wrong(uuid, f"{error}. This GPU alone is not served; a lost one needs its node restarted.")


def _clocks(gpu: NvmlGpu) -> str:
    try:
        clocks = gpu.clocks_megahertz()
    except HardwareError as error:
        return f"tells no list of clocks ({error.code}): locked clocks may not be supported"
    return f"{len(clocks)} clocks from {clocks[-1]} to {clocks[0]} MHz"


def _look_at_counter(gpu: NvmlGpu) -> Finding:
    """Measure how often the energy counter moves, by reading it."""
    moved: list[float] = []
    last, begin = gpu.energy_joules(), time.monotonic()
    while time.monotonic() - begin < WATCH_SECONDS and len(moved) <= PERIODS_WANTED:
        time.sleep(0.001)
        now = gpu.energy_joules()
        if now != last:
            moved.append(time.monotonic())
            last = now
    if len(moved) < 3:
        return wrong(
            gpu.uuid, f"the energy counter moved {len(moved)} times in {WATCH_SECONDS} s: no savings are counted"
        )
    period = statistics.median(later - sooner for sooner, later in pairwise(moved))
    told = f"the energy counter moves every {period * 1000:.0f} ms"
    # Differences telescope over a job; single iterations are as exact as they are long.
    return well(gpu.uuid, told) if period < 0.3 else note(gpu.uuid, f"{told}: iterations should be much longer")
