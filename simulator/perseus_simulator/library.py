"""The C library of the simulated node, as Python sees it: where it lies, its structures and its functions.

The same file is NVML for everybody else on the node; this module only knows its second face, ``psim.h``.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char, c_char_p, c_double, c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

ENV_LIBRARY = "PERSEUS_SIMULATOR_LIBRARY"
ENV_STATE = "PERSEUS_SIMULATOR_STATE"
LIBRARY_NAME = "libnvidia-ml.so.1"
INSTALLED_LIBRARY = Path("/opt/perseus/share/native") / LIBRARY_NAME
CHECKOUT_LIBRARY = Path(__file__).resolve().parent.parent / "native" / "build" / LIBRARY_NAME
MAXIMUM_GPUS = 64
CLOCK_CALL_LOG = 512  # PSIM_CALL_LOG


class SimulatorError(Exception):
    """The simulated node refused something; the text says what and why."""


class Faults(Structure):
    """psim_faults."""

    _fields_ = [
        ("flags", c_uint32),
        ("reserved", c_uint32),
        ("slowdown", c_double),
        ("power_cap_watts", c_double),
        ("call_latency_seconds", c_double),
    ]


class Row(Structure):
    """psim_row."""

    _fields_ = [
        ("stage", c_int32),
        ("instruction", c_int32),
        ("clock_megahertz", c_int32),
        ("reserved", c_int32),
        ("seconds", c_double),
        ("joules", c_double),
    ]


class Config(Structure):
    """psim_config."""

    _fields_ = [
        ("gpus", c_int32),
        ("administrators_only", c_int32),
        ("lowest_clock_megahertz", c_int32),
        ("highest_clock_megahertz", c_int32),
        ("clock_step_megahertz", c_int32),
        ("rows", c_int32),
        ("blocking_watts", c_double),
        ("idle_watts", c_double),
        ("power_limit_watts", c_double),
        ("clock_change_delay_seconds", c_double),
        ("counter_refresh_seconds", c_double),
        ("time_scale", c_double),
        ("time_noise", c_double),
        ("power_noise", c_double),
        ("warm_up_seconds", c_double),
        ("cold_share", c_double),
        ("memory_bytes", c_uint64),
        ("name", c_char * 96),
        ("uuids", (c_char * 48) * MAXIMUM_GPUS),
    ]


class CallCounts(Structure):
    """psim_call_counts."""

    _fields_ = [
        ("set_locked_clocks", c_uint64),
        ("reset_locked_clocks", c_uint64),
        ("refused", c_uint64),
        ("energy_reads", c_uint64),
        ("reads", c_uint64),
    ]


class ClockCallEntry(Structure):
    """psim_clock_call."""

    _fields_ = [
        ("sequence", c_uint64),
        ("received_nanoseconds", c_uint64),
        ("locked", c_int32),
        ("lowest_megahertz", c_int32),
        ("highest_megahertz", c_int32),
        ("result", c_int32),
    ]


class Status(Structure):
    """psim_gpu_status."""

    _fields_ = [
        ("uuid", c_char * 48),
        ("index", c_int32),
        ("locked", c_int32),
        ("locked_lowest_megahertz", c_int32),
        ("locked_highest_megahertz", c_int32),
        ("in_force_locked", c_int32),
        ("in_force_lowest_megahertz", c_int32),
        ("in_force_highest_megahertz", c_int32),
        ("held_clock_megahertz", c_int32),
        ("clients", c_int32),
        ("running", c_int32),
        ("event_reasons", c_uint64),
        ("clock_changes", c_uint64),
        ("kernels", c_uint64),
        ("energy_joules", c_double),
        ("published_joules", c_double),
        ("power_watts", c_double),
        ("temperature_celsius", c_double),
        ("busy_seconds", c_double),
        ("capped_seconds", c_double),
        ("hot_seconds", c_double),
        ("faults", Faults),
        ("calls", CallCounts),
    ]


class KernelResult(Structure):
    """psim_kernel."""

    _fields_ = [
        ("begin_seconds", c_double),
        ("end_seconds", c_double),
        ("simulated_seconds", c_double),
        ("joules", c_double),
        ("mean_clock_megahertz", c_double),
    ]


_SIGNATURES: dict[str, list[object]] = {
    "psim_create": [c_char_p, POINTER(Config), POINTER(Row)],
    "psim_open": [c_char_p, POINTER(c_void_p)],
    "psim_read_config": [c_void_p, POINTER(Config)],
    "psim_status": [c_void_p, c_int, POINTER(Status)],
    "psim_clock_calls": [c_void_p, c_int, c_uint64, POINTER(ClockCallEntry), c_int, POINTER(c_int)],
    "psim_inject": [c_void_p, c_int, POINTER(Faults)],
    "psim_inject_init_unknown": [c_void_p, c_int],
    "psim_foreign_lock": [c_void_p, c_int, c_int, c_int],
    "psim_foreign_reset": [c_void_p, c_int],
    "psim_client_open": [c_void_p, c_int, POINTER(c_void_p)],
    "psim_run": [c_void_p, c_int, c_int, POINTER(KernelResult)],
    "psim_run_fixed": [c_void_p, c_double, c_double, POINTER(KernelResult)],
    "psim_expected": [c_void_p, c_int, c_int, c_int, POINTER(c_double), POINTER(c_double)],
}


def library_path() -> Path:
    """Return the library's place: the environment's, the image's, or the checkout's build.

    Raises:
        SimulatorError: it is nowhere.
    """
    named = os.environ.get(ENV_LIBRARY)
    candidates = [Path(named)] if named else [INSTALLED_LIBRARY, CHECKOUT_LIBRARY]
    for path in candidates:
        if path.exists():
            return path
    raise SimulatorError(f"{' or '.join(str(path) for path in candidates)} does not exist: build it with make native")


@cache
def load() -> ctypes.CDLL:
    """Load the library and declare its functions.

    Raises:
        SimulatorError: it does not exist, or is no library.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path), use_errno=True)
    except OSError as error:
        raise SimulatorError(f"{path} cannot be loaded: {error}") from None
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int
    for name in ("psim_close", "psim_client_close"):
        getattr(library, name).argtypes = [c_void_p]
        getattr(library, name).restype = None
    library.psim_error_string.argtypes = [c_int]
    library.psim_error_string.restype = c_char_p
    return library


def check(result: int, what: str) -> None:
    """Raise if a function of the library failed.

    Raises:
        SimulatorError: with `what` and the library's own words.
    """
    if result:
        reason = os.strerror(ctypes.get_errno()) if result == -2 else load().psim_error_string(result).decode()
        raise SimulatorError(f"{what}: {reason}")
