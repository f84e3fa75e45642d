"""Which pod wholly owns which GPU: the kubelet's claims joined with the API's pods. On any doubt, nobody does.

A claim counts for a pod only if the API knows the pod and it is not finished; against others it counts in any case
unless the API says that its pod is finished. What is shared, partitioned, claimed twice or not understood is refused
with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from perseus_daemonset.devices import Device, Naming, understood
from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.pod_resources import Claim, DynamicClaim, KubeletUnavailable
from perseus_daemonset.pods import Pod, PodTable
from perseus_daemonset.slices import Slices, SlicesUnavailable

GPU_DRIVER = "gpu.nvidia.com"
_PARTS = {
    "mig": ("mig", "a MIG device"),
    "shared": ("shared_gpu", "a share of a GPU (time-slicing, MPS or vGPU)"),
    "unknown": ("unknown_device", "a device whose id is not understood"),
}


class NotOwned(Exception):
    """The pod may not have this GPU's clock set.

    Attributes:
        reason: a short name for metrics.
    """

    def __init__(self, reason: str, text: str) -> None:
        """Name the refusal by a short reason and a sentence."""
        super().__init__(text)
        self.reason = reason


class Names(Protocol):
    """What finds a GPU's UUID by its other names."""

    def uuid_of_index(self, index: int) -> str:
        """Return the UUID of the GPU at an index; raises `HardwareError`."""

    def uuid_of_minor(self, minor: int) -> str:
        """Return the UUID of the GPU of a device node; raises `HardwareError`."""


@dataclass(frozen=True)
class OwnedGpu:
    """A GPU that a pod wholly owns.

    Attributes:
        uuid: of the GPU.
        gpus: how many GPUs the pod owns.
    """

    uuid: str
    gpus: int


class Ownership:
    """Answers who owns a GPU, asking the kubelet each time."""

    def __init__(self, claims: Callable[[], list[Claim]], names: Names, slices: Slices, pods: PodTable) -> None:
        """Join the kubelet's claims, the GPUs' names, the ResourceSlices and the node's pods."""
        self._claims = claims
        self._names = names
        self._slices = slices
        self._pods = pods

    def owned_gpu(self, pod: Pod, wanted: str) -> OwnedGpu:
        """Return the GPU that a pod wholly owns.

        Args:
            pod: a pod of this node, from the API.
            wanted: UUID of the GPU that its process names; empty if the pod owns only one.

        Raises:
            NotOwned: it owns none, not this one, or not alone.
        """
        try:
            living = [claim for claim in self._claims() if _is_living(claim, self._pods)]
            own = [claim for claim in living if (claim.namespace, claim.pod) == (pod.namespace, pod.name)]
            devices = self._devices(own)
            uuids = {self._uuid(device) for device in devices}
            if not uuids:
                raise NotOwned("no_gpu", f"pod {pod.namespace}/{pod.name} owns no GPU of this node")
            for device in devices:
                if device.part:
                    reason, what = _PARTS[device.part]
                    raise NotOwned(reason, f"pod {pod.namespace}/{pod.name} has {what}: only whole GPUs are served")
            if not wanted and len(uuids) > 1:
                raise NotOwned("ambiguous_gpu", f"the pod owns {len(uuids)} GPUs and its process names none of them")
            chosen = wanted or uuids.pop()
            if wanted and wanted not in uuids:
                raise NotOwned("foreign_gpu", f"pod {pod.namespace}/{pod.name} does not own {wanted!r}")
            self._refuse_second_claim(chosen, own, [claim for claim in living if claim not in own])
            return OwnedGpu(chosen, len(uuids) or 1)
        except KubeletUnavailable as error:
            raise NotOwned("kubelet_unavailable", str(error)) from None
        except SlicesUnavailable as error:
            raise NotOwned("slices_unavailable", str(error)) from None
        except HardwareError as error:
            raise NotOwned("unknown_device", f"the pod's device is no GPU of this node: {error}") from None

    def _refuse_second_claim(self, chosen: str, own: list[Claim], others: list[Claim]) -> None:
        dynamic = {(each.driver, each.pool, each.device) for each in own if isinstance(each, DynamicClaim)}
        for claim in others:
            same_name = isinstance(claim, DynamicClaim) and (claim.driver, claim.pool, claim.device) in dynamic
            if same_name or chosen in self._known_uuids(claim):
                raise NotOwned("claimed_twice", f"{chosen} is also claimed by pod {claim.namespace}/{claim.pod}")

    def _known_uuids(self, claim: Claim) -> set[str]:
        """UUIDs of what somebody else claims, as far as they can be told."""
        try:
            return {self._uuid(device) for device in self._devices([claim])}
        except (HardwareError, NotOwned):
            return set()

    def _devices(self, claims: Iterable[Claim]) -> list[Device]:
        found = []
        for claim in claims:
            device = (
                self._dynamic(claim) if isinstance(claim, DynamicClaim) else understood(claim.resource, claim.device)
            )
            if device is not None:
                found.append(device)
        return found

    def _dynamic(self, claim: DynamicClaim) -> Device | None:
        known = self._slices.find((claim.driver, claim.pool, claim.device))
        if known is None and claim.driver == GPU_DRIVER:
            raise NotOwned(
                "unknown_device", f"no ResourceSlice of this node names {claim.driver} device {claim.device}"
            )
        if known is None or not known.uuid.startswith(("GPU-", "MIG-")):
            return None  # a network card, say
        device = understood("nvidia.com/gpu", known.uuid)
        part = "mig" if known.kind == "mig" else "shared" if claim.shared else ""
        return Device(device.naming, device.name, device.part or part) if device else None

    def _uuid(self, device: Device) -> str:
        if device.naming is Naming.INDEX:
            return self._names.uuid_of_index(int(device.name))
        if device.naming is Naming.NODE:
            return self._names.uuid_of_minor(int(device.name))
        return device.name


def _is_living(claim: Claim, pods: PodTable) -> bool:
    pod = pods.by_name(claim.namespace, claim.pod)
    # A pod that the API does not know (yet) may own what it claims: its claim counts against others.
    return pod is None or not pod.is_finished
