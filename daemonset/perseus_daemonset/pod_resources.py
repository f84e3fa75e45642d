"""The kubelet's PodResources API: which container holds which devices, from plugins and from dynamic allocation (DRA).

It is polled, since it has no watch, over a socket that the kubelet makes anew at each start: hence the folder is
mounted and not the socket, and each question opens a channel of its own. What it tells names pods without their UIDs
and may still list finished ones; `ownership` joins it with the API's pods.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from perseus_daemonset.devices import RESOURCE_PREFIX
from perseus_daemonset.kubelet import podresources_pb2 as messages
from perseus_daemonset.kubelet import podresources_pb2_grpc as services

SOCKET_NAME = "kubelet.sock"
CALL_TIMEOUT_SECONDS = 5.0
MAXIMUM_ANSWER_BYTES = 16 * 1024 * 1024
MAXIMUM_CLAIMS = 65_536


class KubeletUnavailable(Exception):
    """The kubelet does not say who owns what; the text says why."""


@dataclass(frozen=True, slots=True)
class PluginClaim:
    """A device that a container got from a device plugin."""

    namespace: str
    pod: str
    resource: str
    device: str


@dataclass(frozen=True, slots=True)
class DynamicClaim:
    """A device that a container got by dynamic resource allocation: a name within a driver's pool.

    Attributes:
        shared: it is a share of the device.
    """

    namespace: str
    pod: str
    driver: str
    pool: str
    device: str
    shared: bool = False


Claim = PluginClaim | DynamicClaim


class PodResources:
    """The kubelet's list."""

    def __init__(self, folder: Path) -> None:
        """Ask the kubelet whose socket is in a folder."""
        self._socket = folder / SOCKET_NAME

    def claims(self) -> list[Claim]:
        """Return every device of every container that may be a GPU.

        Raises:
            KubeletUnavailable: the kubelet does not answer, or says more than anybody can mean.
        """
        options = [("grpc.max_receive_message_length", MAXIMUM_ANSWER_BYTES)]
        try:
            with grpc.insecure_channel(f"unix:{self._socket}", options=options) as channel:
                stub = services.PodResourcesListerStub(channel)  # type: ignore[no-untyped-call]
                answer: Any = stub.List(messages.ListPodResourcesRequest(), timeout=CALL_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
            raise KubeletUnavailable(f"the kubelet does not say who owns the GPUs ({code})") from None
        found = claims_of(answer)
        if len(found) > MAXIMUM_CLAIMS:
            raise KubeletUnavailable(f"the kubelet names {len(found)} devices; at most {MAXIMUM_CLAIMS} are read")
        return found


def claims_of(answer: Any) -> list[Claim]:
    """Return the claims of a ListPodResourcesResponse."""
    found: list[Claim] = []
    for pod in answer.pod_resources:
        for container in pod.containers:
            for devices in container.devices:
                if devices.resource_name.startswith(RESOURCE_PREFIX):
                    found += [
                        PluginClaim(pod.namespace, pod.name, devices.resource_name, device)
                        for device in devices.device_ids
                    ]
            for resource in container.dynamic_resources:
                found += [
                    DynamicClaim(
                        pod.namespace, pod.name, each.driver_name, each.pool_name, each.device_name,
                        shared=each.HasField("share_id"),
                    )
                    for each in resource.claim_resources
                ]  # fmt: skip
    return found
