"""The simulated node in Python's words: create it, look at its GPUs, hurt them, and run kernels on them.

Whoever opens the same state file sees the same devices, whatever process or container it is in. It knows nothing of
Kubernetes and nothing of Perseus but the profile's format.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from perseus_api.instructions import Instruction
from perseus_api.profile import Profile

from perseus_simulator.library import (
    CLOCK_CALL_LOG,
    MAXIMUM_GPUS,
    CallCounts,
    ClockCallEntry,
    Config,
    Faults,
    KernelResult,
    Row,
    SimulatorError,
    Status,
    check,
    load,
)

_FLAGS = {
    "lost": 1,
    "no_permission": 2,
    "not_supported": 4,
    "unknown": 8,
    "mig": 16,
    "vgpu": 32,
    "no_mig": 64,
    "mps": 128,
}
LOWEST_CLOCK_MEGAHERTZ, CLOCK_STEP_MEGAHERTZ = 210, 15  # of an A100


@dataclass(frozen=True)
class GpuStatus:
    """What a simulated GPU is like at one moment (joules, watts, MHz, degrees Celsius).

    Attributes:
        held_clock_megahertz: what NVML answers as the SM clock.
        energy_joules: true energy; `published_joules` is what NVML's counter shows.
        capped_seconds: simulated time in which the power cap held the clock down.
        hot_seconds: simulated time in which heat slowed the device.
        calls: NVML calls so far, by kind.
    """

    uuid: str
    index: int
    locked_range: tuple[int, int] | None
    held_clock_megahertz: int
    clients: int
    running: int
    event_reasons: int
    clock_changes: int
    kernels: int
    energy_joules: float
    published_joules: float
    power_watts: float
    temperature_celsius: float
    capped_seconds: float
    hot_seconds: float
    slowdown: float
    fault_flags: int
    calls: dict[str, int]


@dataclass(frozen=True, slots=True)
class ClockCall:
    """One NVML call that set or reset a GPU's clocks.

    Attributes:
        sequence: from 0, in the order in which the device took them.
        received_nanoseconds: ``time.monotonic_ns()`` when the call entered the library.
        clock_range: lowest and highest clock in MHz, None for a reset.
        result: NVML's return code, 0 if it was accepted.
    """

    sequence: int
    received_nanoseconds: int
    clock_range: tuple[int, int] | None
    result: int


@dataclass(frozen=True)
class Kernel:
    """One piece of work that the device did (seconds of CLOCK_MONOTONIC, simulated seconds, joules)."""

    begin_seconds: float
    end_seconds: float
    simulated_seconds: float
    joules: float
    mean_clock_megahertz: float


class SimulatedGpu:
    """One GPU of a node."""

    def __init__(self, node: SimulatedNode, index: int, gpu_uuid: str) -> None:
        self._node = node
        self.index = index
        self.uuid = gpu_uuid

    def status(self) -> GpuStatus:
        """Return the GPU's state now."""
        raw = Status()
        check(load().psim_status(self._node.handle, self.index, ctypes.byref(raw)), self.uuid)
        return GpuStatus(
            uuid=self.uuid,
            index=self.index,
            locked_range=(raw.locked_lowest_megahertz, raw.locked_highest_megahertz) if raw.locked else None,
            held_clock_megahertz=raw.held_clock_megahertz,
            clients=raw.clients,
            running=raw.running,
            event_reasons=raw.event_reasons,
            clock_changes=raw.clock_changes,
            kernels=raw.kernels,
            energy_joules=raw.energy_joules,
            published_joules=raw.published_joules,
            power_watts=raw.power_watts,
            temperature_celsius=raw.temperature_celsius,
            capped_seconds=raw.capped_seconds,
            hot_seconds=raw.hot_seconds,
            slowdown=raw.faults.slowdown,
            fault_flags=raw.faults.flags,
            calls={name: getattr(raw.calls, name) for name, *_ in CallCounts._fields_},
        )

    def locked_range(self) -> tuple[int, int] | None:
        """Return the lowest and highest clock of the newest lock in MHz, None when unlocked."""
        return self.status().locked_range

    @property
    def energy_joules(self) -> float:
        """True energy since the node was made."""
        return self.status().energy_joules

    @property
    def calls(self) -> dict[str, int]:
        """NVML calls that reached this GPU, by kind."""
        return self.status().calls

    def clock_calls(self, since: int = 0) -> list[ClockCall]:
        """Return the calls that set or reset clocks from a sequence number on; only the newest 512 are kept."""
        entries, count = (ClockCallEntry * CLOCK_CALL_LOG)(), ctypes.c_int()
        check(
            load().psim_clock_calls(self._node.handle, self.index, since, entries, CLOCK_CALL_LOG, ctypes.byref(count)),
            self.uuid,
        )
        return [
            ClockCall(
                each.sequence,
                each.received_nanoseconds,
                (each.lowest_megahertz, each.highest_megahertz) if each.locked else None,
                each.result,
            )
            for each in entries[: count.value]
        ]

    def inject(
        self,
        *,
        slowdown: float = 1.0,
        power_cap_watts: float = 0.0,
        call_latency_seconds: float = 0.0,
        lost: bool = False,
        no_permission: bool = False,
        not_supported: bool = False,
        unknown: bool = False,
        mig: bool = False,
        vgpu: bool = False,
        no_mig: bool = False,
        mps: bool = False,
    ) -> None:
        """Replace all faults of the GPU.

        Args:
            slowdown: heat: instructions take this many times as long.
            power_cap_watts: the clock is held down to keep below it; 0 is none.
            call_latency_seconds: real seconds that each NVML call takes longer.
            lost: every NVML call answers GPU_IS_LOST, kernels fail.
            no_permission: setting clocks answers NO_PERMISSION.
            not_supported: setting clocks answers NOT_SUPPORTED.
            unknown: setting clocks answers UNKNOWN.
            mig: the GPU says it is in MIG mode.
            vgpu: the GPU says it is a virtual one.
            no_mig: asking for the MIG mode answers NOT_SUPPORTED, as a device that knows none.
            mps: its processes are clients of an MPS server.

        Raises:
            SimulatorError: a number is out of range.
        """
        given = {
            "lost": lost,
            "no_permission": no_permission,
            "not_supported": not_supported,
            "unknown": unknown,
            "mig": mig,
            "vgpu": vgpu,
            "no_mig": no_mig,
            "mps": mps,
        }
        flags = sum(bit for name, bit in _FLAGS.items() if given[name])
        faults = Faults(flags, 0, slowdown, power_cap_watts, call_latency_seconds)
        check(load().psim_inject(self._node.handle, self.index, ctypes.byref(faults)), f"faults of {self.uuid}")

    def clear(self) -> None:
        """Take all faults away."""
        self.inject()

    def foreign_lock(self, lowest_megahertz: int, highest_megahertz: int) -> None:
        """Lock the clocks as somebody else's program would."""
        check(
            load().psim_foreign_lock(self._node.handle, self.index, lowest_megahertz, highest_megahertz),
            f"lock of {self.uuid}",
        )

    def foreign_reset(self) -> None:
        """Reset the clocks as somebody else's program would."""
        check(load().psim_foreign_reset(self._node.handle, self.index), f"reset of {self.uuid}")


class SimulatedNode:
    """All simulated GPUs behind one state file."""

    def __init__(self, path: Path) -> None:
        """Open an existing state file.

        Raises:
            SimulatorError: it is not there, or is no state file of this version.
        """
        opened = ctypes.c_void_p()
        check(load().psim_open(os.fsencode(path), ctypes.byref(opened)), f"the simulator's state {path}")
        self.path = path
        self.handle: ctypes.c_void_p | None = opened
        self._config = Config()
        check(load().psim_read_config(opened, ctypes.byref(self._config)), str(path))
        uuids = [bytes(self._config.uuids[index]).rstrip(b"\0").decode() for index in range(self._config.gpus)]
        self.gpus = tuple(SimulatedGpu(self, index, name) for index, name in enumerate(uuids))

    @classmethod
    def open(cls, path: Path | str) -> SimulatedNode:
        """Open an existing state file; see the class."""
        return cls(Path(path))

    @classmethod
    def create(
        cls,
        path: Path | str,
        profile: Profile,
        gpus: int = 1,
        *,
        time_scale: float = 1.0,
        administrators_only: bool = False,
        clock_change_delay_seconds: float = 0.0,
        counter_refresh_seconds: float = 0.1,
        idle_watts: float = 55.0,
        power_limit_watts: float = 400.0,
        time_noise: float = 0.0,
        power_noise: float = 0.0,
        warm_up_seconds: float = 0.0,
        cold_share: float = 0.0,
        uuid_seed: str | None = None,
    ) -> SimulatedNode:
        """Make a node whose GPUs cost what a profile measured, replacing the state file at once.

        Args:
            path: the state file.
            profile: times and energies of the instructions by clock, and the blocking power.
            gpus: how many.
            time_scale: simulated seconds in a real second.
            administrators_only: setting clocks needs CAP_SYS_ADMIN, as on a real driver.
            clock_change_delay_seconds: from the NVML call to the clock in force, simulated.
            counter_refresh_seconds: how often the energy counter moves, simulated.
            idle_watts: power of a GPU that no process has open.
            power_limit_watts: what NVML answers as the limit.
            time_noise: standard deviation of an instruction's time, as a share of it.
            power_noise: standard deviation of an instruction's power, as a share of it.
            warm_up_seconds: simulated time constant with which a chip warms once a process has opened it; 0: at once.
            cold_share: a cold chip draws this share less power; what the profile says holds for a warm one.
            uuid_seed: the same seed gives the same UUIDs; None draws new ones.

        Raises:
            SimulatorError: a value is out of range, or the file cannot be written.
        """
        clocks = [each.frequency_megahertz for entries in profile.measurements.values() for each in entries]
        rows = [
            Row(
                stage, ord(instruction.code), each.frequency_megahertz if instruction.has_clock else 0, 0,
                each.time_seconds, each.energy_joules,
            )
            for (stage, instruction), entries in profile.measurements.items()
            for each in entries
        ]  # fmt: skip
        highest = max(clocks)
        steps = (highest - min(LOWEST_CLOCK_MEGAHERTZ, highest)) // CLOCK_STEP_MEGAHERTZ
        config = Config(
            gpus=gpus,
            administrators_only=administrators_only,
            lowest_clock_megahertz=highest - steps * CLOCK_STEP_MEGAHERTZ,
            highest_clock_megahertz=highest,
            clock_step_megahertz=CLOCK_STEP_MEGAHERTZ,
            rows=len(rows),
            blocking_watts=profile.header.blocking_power_watts,
            idle_watts=idle_watts,
            power_limit_watts=power_limit_watts,
            clock_change_delay_seconds=clock_change_delay_seconds,
            counter_refresh_seconds=counter_refresh_seconds,
            time_scale=time_scale,
            time_noise=time_noise,
            power_noise=power_noise,
            warm_up_seconds=warm_up_seconds,
            cold_share=cold_share,
            memory_bytes=80 * 1024**3,
            name=(profile.header.gpu_model or "Simulated GPU").encode()[:95],
        )
        if not 1 <= gpus <= MAXIMUM_GPUS:
            raise SimulatorError(f"a node has from 1 to {MAXIMUM_GPUS} GPUs, not {gpus}")
        for index in range(gpus):
            made = uuid.uuid4() if uuid_seed is None else uuid.uuid5(uuid.NAMESPACE_URL, f"{uuid_seed}/{index}")
            config.uuids[index].value = f"GPU-{made}".encode()
        table = (Row * len(rows))(*rows)
        check(load().psim_create(os.fsencode(path), ctypes.byref(config), table), f"the simulator's state {path}")
        return cls(Path(path))

    @property
    def time_scale(self) -> float:
        """Simulated seconds in a real second."""
        return float(self._config.time_scale)

    @property
    def name(self) -> str:
        """The GPUs' model, as NVML names it."""
        return bytes(self._config.name).rstrip(b"\0").decode()

    def gpu(self, gpu_uuid: str) -> SimulatedGpu:
        """Return a GPU by its UUID.

        Raises:
            SimulatorError: the node has no such GPU.
        """
        for gpu in self.gpus:
            if gpu.uuid == gpu_uuid:
                return gpu
        raise SimulatorError(f"{gpu_uuid} is not a GPU of this node; it has {', '.join(gpu.uuid for gpu in self.gpus)}")

    def inject_init_unknown(self, on: bool) -> None:
        """Let nvmlInit answer "Unknown Error", as a container does that lost its devices."""
        check(load().psim_inject_init_unknown(self.handle, int(on)), "the node's fault")

    def expected(self, stage: int, instruction: Instruction, clock_megahertz: int) -> tuple[float, float]:
        """Return simulated seconds and joules of an instruction at a clock.

        Raises:
            SimulatorError: the profile does not hold it.
        """
        seconds, joules = ctypes.c_double(), ctypes.c_double()
        result = load().psim_expected(
            self.handle, stage, ord(instruction.code), clock_megahertz, ctypes.byref(seconds), ctypes.byref(joules)
        )
        check(result, f"stage {stage} {instruction.value}")
        return seconds.value, joules.value

    def close(self) -> None:
        """Let go of the state file; its GPUs live on."""
        if self.handle is not None:
            load().psim_close(self.handle)
            self.handle = None

    def __enter__(self) -> SimulatedNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KernelClient:
    """A process's access to one GPU: while it is open the GPU draws its blocking power between kernels."""

    def __init__(self, node: SimulatedNode, gpu_uuid: str) -> None:
        """Open the GPU.

        Raises:
            SimulatorError: unknown or lost GPU, or too many clients.
        """
        self._uuid = gpu_uuid
        opened = ctypes.c_void_p()
        check(load().psim_client_open(node.handle, node.gpu(gpu_uuid).index, ctypes.byref(opened)), gpu_uuid)
        self._handle: ctypes.c_void_p | None = opened
        self._result = KernelResult()
        self._run = load().psim_run

    def run(self, stage: int, instruction: Instruction) -> Kernel:
        """Run an instruction of the profile, and return when the device is done.

        Raises:
            SimulatorError: the profile does not hold it, or the GPU was lost.
        """
        result = self._run(self._handle, stage, ord(instruction.code), ctypes.byref(self._result))
        if result:
            check(result, f"stage {stage} {instruction.value} on {self._uuid}")
        return self._kernel()

    def run_fixed(self, seconds: float, watts: float) -> Kernel:
        """Keep the device busy for simulated seconds at a power, whatever its clock.

        Raises:
            SimulatorError: a number is out of range, or the GPU was lost.
        """
        result = load().psim_run_fixed(self._handle, seconds, watts, ctypes.byref(self._result))
        check(result, f"fixed work on {self._uuid}")
        return self._kernel()

    def close(self) -> None:
        """Give the GPU back."""
        if self._handle is not None:
            load().psim_client_close(self._handle)
            self._handle = None

    def __enter__(self) -> KernelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kernel(self) -> Kernel:
        raw = self._result
        return Kernel(raw.begin_seconds, raw.end_seconds, raw.simulated_seconds, raw.joules, raw.mean_clock_megahertz)
