"""A fleet without machines: kwok plays the kubelets of as many nodes as asked for, eight GPUs each."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.controlplane import DIES_WITH_US, ControlPlane, free_port
from testbed import binaries as programs
from testbed.execution import wait_until
from testbed.folders import Folders

STAGES = Path(__file__).with_name("stages.yaml")
GPUS_PER_NODE = 8
_CREATORS = 6


@contextlib.contextmanager
def fleet(plane: ControlPlane, nodes: int) -> Iterator[None]:
    """Nodes that are ready for the time of a block.

    Raises:
        TestbedError: they do not become ready.
    """
    kwok = programs.build(Folders.from_environment().cache, only={"kwok"})["kwok"]
    with (plane.folder / "kwok.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *DIES_WITH_US, str(kwok), f"--kubeconfig={plane.kubeconfig}", f"--config={STAGES}",
                "--manage-all-nodes", "--node-lease-duration-seconds=0",
                f"--server-address=127.0.0.1:{free_port()}",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        create_nodes(plane, nodes)
        wait_until(f"{nodes} nodes", lambda: _ready(plane) >= nodes, timeout_seconds=180, period_seconds=1.0)
        yield
    finally:
        process.kill()
        process.wait()


def create_nodes(plane: ControlPlane, nodes: int) -> None:
    """Create nodes that kwok keeps."""

    def create(index: int) -> None:
        metadata = {"name": f"node-{index:05d}", "labels": {"kubernetes.io/os": "linux"}}
        plane.client.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata})

    with ThreadPoolExecutor(_CREATORS) as pool:
        list(pool.map(create, range(nodes)))


def _ready(plane: ControlPlane) -> int:
    return sum(
        any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"].get("conditions", []))
        for node in plane.client.items("/api/v1/nodes", resourceVersion="0")
    )
