"""ResourceSlices: what the drivers of dynamic resource allocation say of this node's devices, GPUs' UUIDs among it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DeviceName = tuple[str, str, str]  # driver, pool, device
REFRESH_SECONDS = 60.0
RETRY_SECONDS = 2.0


class SlicesUnavailable(Exception):
    """The API server does not tell the ResourceSlices; the text says why."""


@dataclass(frozen=True, slots=True)
class DynamicDevice:
    """A device of a ResourceSlice.

    Attributes:
        uuid: its attribute ``uuid``, empty if it has none (it is no GPU).
        kind: its attribute ``type``, such as ``gpu`` or ``mig``.
    """

    uuid: str
    kind: str


def devices_of(slices: list[dict[str, Any]]) -> dict[DeviceName, DynamicDevice]:
    """Return the devices of ResourceSlices; what is not shaped like one is left out.

    An attribute's name may carry the driver's domain or leave it out; in `v1beta1` attributes stand under ``basic``.
    """
    found = {}
    for each in slices:
        spec = each.get("spec") or {}
        driver, pool = str(spec.get("driver", "")), str((spec.get("pool") or {}).get("name", ""))
        for device in spec.get("devices") or []:
            attributes = device.get("attributes") or (device.get("basic") or {}).get("attributes") or {}
            texts = {
                name.removeprefix(f"{driver}/"): value["string"]
                for name, value in attributes.items()
                if isinstance(value, dict) and isinstance(value.get("string"), str)
            }
            found[driver, pool, str(device.get("name", ""))] = DynamicDevice(
                texts.get("uuid", "")[:128], texts.get("type", "")[:64]
            )
    return found


class Slices:
    """This node's ResourceSlices, read when a pod has a dynamic claim, and again when one is not found."""

    def __init__(self, read: Callable[[], list[dict[str, Any]]]) -> None:
        """Use a function that reads them from the API server, and raises `SlicesUnavailable`."""
        self._read = read
        self._devices: dict[DeviceName, DynamicDevice] = {}
        self._read_seconds = -REFRESH_SECONDS
        self._mutex = threading.Lock()

    def find(self, name: DeviceName) -> DynamicDevice | None:
        """Return a device, None if no slice names it.

        Raises:
            SlicesUnavailable: the API server does not answer.
        """
        with self._mutex:
            age = time.monotonic() - self._read_seconds
            if age > REFRESH_SECONDS or (name not in self._devices and age > RETRY_SECONDS):
                self._devices = devices_of(self._read())
                self._read_seconds = time.monotonic()
            return self._devices.get(name)
