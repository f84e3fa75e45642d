"""Announces the simulated GPUs to the real kubelet as ``nvidia.com/gpu``, as NVIDIA's plugin announces real ones.

It makes the simulated node first (or keeps the one that runs) and puts the library on the host, where the agent and
the training containers find it. What a container gets is what NVIDIA's stack injects: its GPU's UUID, and the
driver's library.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from perseus_api import names
from perseus_api.profile import Profile

from perseus_simulator.kubelet import deviceplugin_pb2 as messages
from perseus_simulator.kubelet import deviceplugin_pb2_grpc as services
from perseus_simulator.library import ENV_LIBRARY, ENV_STATE, LIBRARY_NAME, library_path
from perseus_simulator.node import SimulatedNode

API_VERSION = "v1beta1"
PLUGIN_FOLDER = Path("/var/lib/kubelet/device-plugins")
SOCKET_NAME = "perseus-simulator.sock"
KUBELET_SOCKET_NAME = "kubelet.sock"
POLL_SECONDS = 1.0
_LOST = 1
logger = logging.getLogger("perseus.simulator")


class DevicePlugin(services.DevicePluginServicer):
    """The methods that the kubelet calls."""

    def __init__(self, node: SimulatedNode, folder: Path) -> None:
        """Serve a node whose state and library lie in `folder` on the host."""
        self._node = node
        self._folder = folder
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the streams."""
        self._stopped.set()

    def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's names
        """Neither preparation nor preference is needed."""
        return messages.DevicePluginOptions()

    def ListAndWatch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802, ARG002
        """Tell the devices, and again whenever the health of one changes."""
        told: list[tuple[str, str]] = []
        while context.is_active() and not self._stopped.is_set():
            devices = [(gpu.uuid, "Unhealthy" if self._is_lost(gpu.index) else "Healthy") for gpu in self._node.gpus]
            if devices != told:
                told = devices
                yield messages.ListAndWatchResponse(
                    devices=[messages.Device(ID=uuid, health=health) for uuid, health in devices]
                )
            self._stopped.wait(POLL_SECONDS)

    def Allocate(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Give a container its GPUs."""
        known = {gpu.uuid for gpu in self._node.gpus}
        responses = []
        for container in request.container_requests:
            unknown = [uuid for uuid in container.devices_ids if uuid not in known]
            if unknown:
                context.abort(grpc.StatusCode.NOT_FOUND, f"{unknown[0]} is not a GPU of this node")
            responses.append(
                messages.ContainerAllocateResponse(
                    envs={
                        names.ENV_VISIBLE_DEVICES: ",".join(sorted(container.devices_ids)),
                        ENV_STATE: str(self._folder / "state"),
                        ENV_LIBRARY: str(self._folder / "lib" / LIBRARY_NAME),
                        "LD_LIBRARY_PATH": str(self._folder / "lib"),
                    },
                    mounts=[messages.Mount(container_path=str(self._folder), host_path=str(self._folder))],
                )
            )
        return messages.AllocateResponse(container_responses=responses)

    def _is_lost(self, index: int) -> bool:
        return bool(self._node.gpus[index].status().fault_flags & _LOST)


def prepare(state: Path, profile: Profile, gpus: int, time_scale: float) -> SimulatedNode:
    """Put library and state in place, atomically; a state of the same making is kept with its locks and counters.

    Raises:
        SimulatorError: the library is nowhere, or a value is out of range.
    """
    library = state.parent / "lib" / LIBRARY_NAME
    library.parent.mkdir(parents=True, exist_ok=True)
    source = library_path()
    if not library.exists() or library.read_bytes() != source.read_bytes():
        draft = library.with_suffix(".draft")
        shutil.copyfile(source, draft)
        draft.chmod(0o755)
        draft.rename(library)
    making = hashlib.sha256(repr((profile, gpus, time_scale, source.read_bytes())).encode()).hexdigest()
    mark = state.with_name("state.making")
    if state.exists() and mark.exists() and mark.read_text() == making:
        return SimulatedNode.open(state)
    node = SimulatedNode.create(state, profile, gpus, time_scale=time_scale, administrators_only=True)
    mark.write_text(making)
    return node


def serve(state: Path, profile: Profile, gpus: int, time_scale: float, plugins: Path = PLUGIN_FOLDER) -> int:
    """Serve the kubelet until SIGTERM; register again whenever the kubelet starts anew.

    Raises:
        SimulatorError: the node cannot be made.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    node = prepare(state, profile, gpus, time_scale)
    logger.info("%d simulated GPUs (%s) in %s, time scale %g", gpus, node.name, state, time_scale)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        _serve_one_kubelet(node, state.parent, plugins, stopped)
    node.close()
    return 0


def _serve_one_kubelet(node: SimulatedNode, folder: Path, plugins: Path, stopped: threading.Event) -> None:
    """Serve until the kubelet makes a new socket: it then has forgotten every plugin, and removed their sockets."""
    plugin = DevicePlugin(node, folder)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    services.add_DevicePluginServicer_to_server(plugin, server)  # type: ignore[no-untyped-call]
    socket = plugins / SOCKET_NAME
    socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    kubelet = plugins / KUBELET_SOCKET_NAME
    registered: tuple[int, int] | None = None
    try:
        while not stopped.is_set():
            found = _identity(kubelet)
            # A kubelet takes all plugins' sockets away before it makes its own: one that is found has done so.
            if not socket.exists() or registered not in (None, found):
                logger.info("the kubelet started anew")
                return
            if registered is None and found is not None:
                try:
                    _register(kubelet)
                except grpc.RpcError as error:
                    logger.info("the kubelet does not answer yet: %s", error.code())
                else:
                    registered = found
                    logger.info("registered %s with the kubelet", names.GPU_RESOURCE)
            stopped.wait(POLL_SECONDS)
    finally:
        plugin.stop()
        server.stop(grace=0.2).wait()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _register(kubelet: Path) -> None:
    with grpc.insecure_channel(f"unix:{kubelet}") as channel:
        request = messages.RegisterRequest(version=API_VERSION, endpoint=SOCKET_NAME, resource_name=names.GPU_RESOURCE)
        services.RegistrationStub(channel).Register(request, timeout=5)  # type: ignore[no-untyped-call]
