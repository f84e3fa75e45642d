"""The device plugin before a real gRPC server in the kubelet's place: registering, health, allocation, restarts."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from agent_side import eventually
from perseus_simulator.device_plugin import KUBELET_SOCKET_NAME, SOCKET_NAME, prepare
from perseus_simulator.kubelet import deviceplugin_pb2 as messages
from perseus_simulator.kubelet import deviceplugin_pb2_grpc as services
from perseus_simulator.library import SimulatorError
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import example_profile

WAIT_SECONDS = 30.0
GPUS = 3
_PLUGIN = """
import sys
from pathlib import Path
from perseus_simulator.device_plugin import serve
from perseus_simulator.testing import example_profile
sys.exit(serve(Path(sys.argv[1]), example_profile(), int(sys.argv[2]), 1.0, Path(sys.argv[3])))
"""


class Kubelet(services.RegistrationServicer):
    """Listens where the kubelet does; a new one forgets all plugins, as the real one does."""

    def __init__(self, plugins: Path) -> None:
        for leftover in plugins.iterdir():
            leftover.unlink(missing_ok=True)
        self.registered: queue.Queue[Any] = queue.Queue()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        services.add_RegistrationServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"unix:{plugins / KUBELET_SOCKET_NAME}")
        self._server.start()

    def Register(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.registered.put(request)
        return messages.Empty()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder


@pytest.fixture
def kubelet(plugins: Path) -> Iterator[Kubelet]:
    made = Kubelet(plugins)
    yield made
    made.stop()


@pytest.fixture
def state(simulator_library: Path, tmp_path: Path) -> Path:
    return tmp_path / "host" / "state"


@pytest.fixture
def process(state: Path, plugins: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _PLUGIN, str(state), str(GPUS), str(plugins)]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
    yield started
    started.kill()
    started.wait()


@pytest.fixture
def plugin(kubelet: Kubelet, process: subprocess.Popen[str], plugins: Path) -> Iterator[Any]:
    """The methods of a plugin that has registered."""
    kubelet.registered.get(timeout=WAIT_SECONDS)
    with grpc.insecure_channel(f"unix:{plugins / SOCKET_NAME}") as channel:
        yield services.DevicePluginStub(channel)  # type: ignore[no-untyped-call]


def healths(response: Any) -> dict[str, str]:
    return {device.ID: device.health for device in response.devices}


def test_it_registers_the_gpu_resource_and_tells_each_gpu_by_uuid(
    kubelet: Kubelet, process: subprocess.Popen[str], plugins: Path, state: Path
) -> None:
    request = kubelet.registered.get(timeout=WAIT_SECONDS)
    assert (request.version, request.resource_name) == ("v1beta1", "nvidia.com/gpu")
    with grpc.insecure_channel(f"unix:{plugins / request.endpoint}") as channel, SimulatedNode.open(state) as node:
        stub = services.DevicePluginStub(channel)  # type: ignore[no-untyped-call]
        options = stub.GetDevicePluginOptions(messages.Empty(), timeout=WAIT_SECONDS)
        assert (options.pre_start_required, options.get_preferred_allocation_available) == (False, False)
        first = next(stub.ListAndWatch(messages.Empty(), timeout=WAIT_SECONDS))
        assert healths(first) == {gpu.uuid: "Healthy" for gpu in node.gpus}
        assert len(node.gpus) == GPUS
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_SECONDS) == 0


def test_a_lost_gpu_turns_unhealthy_and_healthy_when_it_is_back(plugin: Any, state: Path) -> None:
    with SimulatedNode.open(state) as node:
        stream = plugin.ListAndWatch(messages.Empty(), timeout=WAIT_SECONDS)
        well = healths(next(stream))
        node.gpus[1].inject(lost=True)
        assert healths(next(stream)) == {**well, node.gpus[1].uuid: "Unhealthy"}
        node.gpus[1].clear()
        assert healths(next(stream)) == well


def test_a_hot_gpu_is_not_a_lost_one(plugin: Any, state: Path) -> None:
    with SimulatedNode.open(state) as node:
        stream = plugin.ListAndWatch(messages.Empty(), timeout=WAIT_SECONDS)
        next(stream)
        node.gpus[0].inject(slowdown=1.5, no_permission=True, mig=True)
        node.gpus[2].inject(lost=True)
        changed = [uuid for uuid, health in healths(next(stream)).items() if health != "Healthy"]
        assert changed == [node.gpus[2].uuid]


def test_each_container_gets_its_gpus_and_what_reaches_them_and_no_more(plugin: Any, state: Path) -> None:
    with SimulatedNode.open(state) as node:
        one, two, three = (gpu.uuid for gpu in node.gpus)
    requests = [messages.ContainerAllocateRequest(devices_ids=ids) for ids in ([three, one], [two])]
    answer = plugin.Allocate(messages.AllocateRequest(container_requests=requests), timeout=WAIT_SECONDS)
    visible = [container.envs["NVIDIA_VISIBLE_DEVICES"] for container in answer.container_responses]
    assert visible == [",".join(sorted([one, three])), two]
    for container in answer.container_responses:
        (mount,) = container.mounts
        assert mount.host_path == mount.container_path == str(state.parent)
        library = Path(container.envs["PERSEUS_SIMULATOR_LIBRARY"])
        assert library.is_file()
        assert library.is_relative_to(mount.container_path)
        assert container.envs["PERSEUS_SIMULATOR_STATE"] == str(state)
        assert container.envs["LD_LIBRARY_PATH"] == str(library.parent)


def test_a_gpu_of_another_node_is_not_given(plugin: Any) -> None:
    request = messages.AllocateRequest(
        container_requests=[messages.ContainerAllocateRequest(devices_ids=["GPU-elsewhere"])]
    )
    with pytest.raises(grpc.RpcError) as refused:
        plugin.Allocate(request, timeout=WAIT_SECONDS)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "GPU-elsewhere is not a GPU of this node" in refused.value.details()


def test_it_registers_again_with_a_kubelet_that_started_anew(
    kubelet: Kubelet, plugin: Any, plugins: Path, state: Path
) -> None:
    kubelet.stop()
    again = Kubelet(plugins)
    try:
        request = again.registered.get(timeout=WAIT_SECONDS)
        with grpc.insecure_channel(f"unix:{plugins / request.endpoint}") as channel:
            stub = services.DevicePluginStub(channel)  # type: ignore[no-untyped-call]
            with SimulatedNode.open(state) as node:
                told = healths(next(stub.ListAndWatch(messages.Empty(), timeout=WAIT_SECONDS)))
                assert set(told) == {gpu.uuid for gpu in node.gpus}
    finally:
        again.stop()


def test_a_kubelet_that_starts_later_is_waited_for(process: subprocess.Popen[str], plugins: Path) -> None:
    eventually((plugins / SOCKET_NAME).exists, "the plugin listens")
    late = Kubelet(plugins)
    try:
        assert late.registered.get(timeout=WAIT_SECONDS).resource_name == "nvidia.com/gpu"
        assert process.poll() is None
    finally:
        late.stop()


def test_a_restarted_plugin_keeps_the_node_with_its_locks_and_counters(state: Path) -> None:
    with prepare(state, example_profile(), 2, 1.0) as node:
        uuids = [gpu.uuid for gpu in node.gpus]
        node.gpus[1].foreign_lock(1005, 1005)
    with prepare(state, example_profile(), 2, 1.0) as again:
        assert [gpu.uuid for gpu in again.gpus] == uuids
        assert again.gpus[1].locked_range() == (1005, 1005)


def test_another_making_is_another_node(state: Path) -> None:
    with prepare(state, example_profile(), 2, 1.0) as node:
        node.gpus[0].foreign_lock(1005, 1005)
    for profile, gpus, scale in (
        (example_profile(), 3, 1.0),
        (example_profile(), 3, 2.0),
        (example_profile(3), 3, 2.0),
    ):
        with prepare(state, profile, gpus, scale) as other:
            assert (len(other.gpus), other.time_scale) == (gpus, scale)
            assert other.gpus[0].locked_range() is None
            other.gpus[0].foreign_lock(1005, 1005)


def test_a_node_whose_making_was_interrupted_is_made_again(state: Path) -> None:
    state.parent.mkdir(parents=True)
    state.write_bytes(b"half a state")
    with prepare(state, example_profile(), 1, 1.0) as node:
        assert len(node.gpus) == 1


def test_the_library_is_put_in_place_whole_and_an_old_one_replaced(state: Path, simulator_library: Path) -> None:
    prepare(state, example_profile(), 1, 1.0).close()
    (placed,) = (state.parent / "lib").iterdir()
    assert placed.name == "libnvidia-ml.so.1"
    assert placed.read_bytes() == simulator_library.read_bytes()
    inode = placed.stat().st_ino
    prepare(state, example_profile(), 1, 1.0).close()
    assert placed.stat().st_ino == inode, "a library in use is left alone"
    placed.write_bytes(b"old")
    prepare(state, example_profile(), 1, 1.0).close()
    assert placed.read_bytes() == simulator_library.read_bytes()
    assert placed.stat().st_ino != inode, "renamed into place: who has the old one mapped keeps it"


@pytest.mark.parametrize("gpus", [0, 65])
def test_a_number_of_gpus_out_of_range_is_refused(gpus: int, state: Path) -> None:
    with pytest.raises(SimulatorError, match=f"from 1 to 64 GPUs, not {gpus}"):
        prepare(state, example_profile(), gpus, 1.0)
