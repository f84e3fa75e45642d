"""Which pod owns which GPU, by the kubelet's PodResources API joined with the API server's pods.

PodResources is polled (it has no watch), tells no pod UID and may list finished pods: a claim counts only if the API
knows a pod of that name that is not finished. A GPU is served only to a pod that owns it wholly: what is shared,
partitioned or claimed twice is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from perseus_daemonset.kubelet import podresources_pb2 as messages
from perseus_daemonset.kubelet import podresources_pb2_grpc as services
from perseus_daemonset.pods import Pod, PodTable

GPU_RESOURCE_PREFIX = "nvidia.com/"
WHOLE_GPU_RESOURCE = "nvidia.com/gpu"
SOCKET_NAME = "kubelet.sock"
CALL_TIMEOUT_SECONDS = 5.0
MAXIMUM_ANSWER_BYTES = 16 * 1024 * 1024
_WHOLE = re.compile(r"GPU-[0-9a-fA-F-]{8,64}")


class NotOwned(Exception):
    """The pod may not have this GPU's clock set.

    Attributes:
        reason: a short name for metrics.
    """

    def __init__(self, reason: str, text: str) -> None:
        """Name the refusal by a short reason and a sentence."""
        super().__init__(text)
        self.reason = reason


class DeviceClaim:
    """One device of one container."""

    __slots__ = ("device", "namespace", "pod", "resource")

    def __init__(self, namespace: str, pod: str, resource: str, device: str) -> None:
        """Name the pod, the resource and the device's id."""
        self.namespace, self.pod, self.resource, self.device = namespace, pod, resource, device


class PodResources:
    """The kubelet's list, asked over its socket; the folder is mounted, since the kubelet replaces the socket."""

    def __init__(self, folder: Path) -> None:
        """Ask the kubelet whose socket is in a folder."""
        self._socket = folder / SOCKET_NAME

    def claims(self) -> list[DeviceClaim]:
        """Return every GPU of every container.

        Raises:
            NotOwned: the kubelet does not answer.
        """
        options = [("grpc.max_receive_message_length", MAXIMUM_ANSWER_BYTES)]
        try:
            # A channel for each question: one that outlives the kubelet's restart would answer from the dead.
            with grpc.insecure_channel(f"unix:{self._socket}", options=options) as channel:
                stub = services.PodResourcesListerStub(channel)  # type: ignore[no-untyped-call]
                answer: Any = stub.List(messages.ListPodResourcesRequest(), timeout=CALL_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise NotOwned("kubelet_unavailable", f"the kubelet does not say who owns the GPUs: {error}") from None
        return [
            DeviceClaim(pod.namespace, pod.name, devices.resource_name, device)
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
            if devices.resource_name.startswith(GPU_RESOURCE_PREFIX)
            for device in devices.device_ids
        ]


def owned_gpu(pod: Pod, wanted: str, claims: Iterable[DeviceClaim], pods: PodTable) -> str:
    """Return the UUID of the GPU that a pod wholly owns.

    Args:
        pod: a pod of this node, from the API.
        wanted: the GPU that its process names; empty if the pod owns only one.
        claims: the kubelet's list.
        pods: the node's pods, to leave out finished ones.

    Raises:
        NotOwned: it owns none, not this one, or not alone.
    """
    living = [claim for claim in claims if _is_living(claim, pods)]
    own = [claim for claim in living if (claim.namespace, claim.pod) == (pod.namespace, pod.name)]
    if not own:
        raise NotOwned("no_gpu", f"pod {pod.namespace}/{pod.name} owns no GPU of this node")
    for claim in own:
        if claim.resource != WHOLE_GPU_RESOURCE or not _WHOLE.fullmatch(claim.device):
            raise NotOwned(
                "shared_gpu", f"{claim.resource} {claim.device[:80]} is a part of a GPU: only whole GPUs are served"
            )
    devices = sorted({claim.device for claim in own})
    if not wanted and len(devices) > 1:
        raise NotOwned("ambiguous_gpu", f"the pod owns {len(devices)} GPUs and its process names none of them")
    chosen = wanted or devices[0]
    if chosen not in devices:
        raise NotOwned("foreign_gpu", f"pod {pod.namespace}/{pod.name} does not own {chosen[:80]}")
    others = [claim for claim in living if _same_gpu(claim.device, chosen) and claim not in own]
    if others:
        raise NotOwned("claimed_twice", f"{chosen} is also claimed by pod {others[0].namespace}/{others[0].pod}")
    return chosen


def _is_living(claim: DeviceClaim, pods: PodTable) -> bool:
    pod = pods.by_name(claim.namespace, claim.pod)
    # A pod that the API does not know (yet) may own what it claims: its claim counts against others.
    return pod is None or not pod.is_finished


def _same_gpu(device: str, uuid: str) -> bool:
    return device == uuid or device.startswith(f"{uuid}::")
