"""What a device id says: the forms in which device plugins and drivers name a GPU, or a part of one. Pure.

- ``GPU-<uuid>``: a whole GPU (NVIDIA's device plugin), by what it is addressed everywhere else;
- ``0``: a whole GPU by its index (the same plugin, where ids are indices);
- ``nvidia0``: a whole GPU by its device node (GKE's plugin);
- ``GPU-<uuid>::3``, ``0::3``, ``nvidia0/vgpu3``: a replica, of a GPU shared by time-slicing or MPS;
- ``MIG-<uuid>``, ``MIG-GPU-<uuid>/1/0``, ``0:1``, ``nvidia0/gi1``: a MIG device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

RESOURCE_PREFIX = "nvidia.com/"
_UUID = re.compile(r"GPU-[0-9a-fA-F]{8}-[0-9a-fA-F-]{4,60}")
_INDEX = re.compile(r"[0-9]{1,3}")
_NODE = re.compile(r"nvidia([0-9]{1,3})")
_MIG_OF_GPU = re.compile(r"MIG-(GPU-[0-9a-fA-F-]{8,64})/[0-9]+/[0-9]+")
_GPU_RESOURCES = re.compile(r"nvidia\.com/(gpu|gpu\..+|mig-.+|vgpu.*)")


class Naming(Enum):
    """How a whole GPU is named."""

    UUID = "uuid"
    INDEX = "index"
    NODE = "node"  # the number of /dev/nvidiaN


@dataclass(frozen=True, slots=True)
class Device:
    """A device id, understood.

    Attributes:
        naming: how the GPU is named, None if it is not known which one it is (a MIG device by its own UUID).
        name: UUID, index or number of the device node.
        part: ``mig`` or ``shared`` if it is a part of the GPU, ``unknown`` if that cannot be told, empty if it is the
            whole.
    """

    naming: Naming | None
    name: str
    part: str = ""


def understood(resource: str, device_id: str) -> Device | None:
    """Return what a device id names, None if it is no GPU's.

    Args:
        resource: extended resource, such as ``nvidia.com/gpu``.
        device_id: as the plugin announced it to the kubelet.
    """
    if not resource.startswith(RESOURCE_PREFIX):
        return None
    found = _device(device_id)
    if found is None:
        # Other devices of the vendor (network cards) stand under the same prefix.
        return Device(None, "", "unknown") if _GPU_RESOURCES.fullmatch(resource) else None
    if not found.part and resource.startswith((f"{RESOURCE_PREFIX}mig-", f"{RESOURCE_PREFIX}gpu.shared")):
        return Device(found.naming, found.name, "mig" if "/mig-" in resource else "shared")
    return found


def _device(text: str) -> Device | None:
    if text.startswith("MIG-"):
        match = _MIG_OF_GPU.fullmatch(text)
        return Device(Naming.UUID, match[1], "mig") if match else Device(None, "", "mig")
    whole, replica, _ = text.partition("::")
    if not replica:
        whole, instance, rest = text.partition("/")
        if instance:
            node = _whole(whole)
            return (
                None if node is None else Device(node.naming, node.name, "mig" if rest.startswith("gi") else "shared")
            )
        whole, instance, _ = text.partition(":")
        if instance:
            index = _whole(whole)
            return None if index is None else Device(index.naming, index.name, "mig")
    found = _whole(whole)
    return Device(found.naming, found.name, "shared") if found and replica else found


def _whole(text: str) -> Device | None:
    if _UUID.fullmatch(text):
        return Device(Naming.UUID, text)
    if _INDEX.fullmatch(text):
        return Device(Naming.INDEX, str(int(text)))
    match = _NODE.fullmatch(text)
    return Device(Naming.NODE, str(int(match[1]))) if match else None
