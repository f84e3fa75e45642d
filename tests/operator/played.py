"""A kubelet that is played: whatever pod is made runs and is ready a moment later, and ends when a test says so."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

from harness.client import Document, Refused
from harness.controlplane import ControlPlane
from harness.objects import core_path

_PERIOD_SECONDS = 0.2


@contextlib.contextmanager
def running_pods(plane: ControlPlane) -> Iterator[None]:
    """Whatever pod is made runs and is ready a moment later."""
    over = threading.Event()
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

    def play() -> None:
        while not over.wait(_PERIOD_SECONDS):
            for pod in plane.client.items("/api/v1/pods", fieldSelector="status.phase=Pending"):
                with contextlib.suppress(Refused):  # It may be gone by now.
                    plane.client.merge(f"{_path(pod)}/status", {"status": running})

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end_pods(plane: ControlPlane, pods: Iterable[Document], phase: str) -> None:
    """Containers end, well or killed, as the kubelet would tell."""
    ended = {"terminated": {"exitCode": 0 if phase == "Succeeded" else 137}}
    for pod in pods:
        containers = [
            {
                "name": each["name"], "image": each["image"], "imageID": "", "ready": False, "restartCount": 0,
                "state": ended,
            }
            for each in pod["spec"]["containers"]
        ]  # fmt: skip
        unready = [{"type": "Ready", "status": "False"}]
        status = {"phase": phase, "conditions": unready, "containerStatuses": containers}
        plane.client.merge(f"{_path(pod)}/status", {"status": status})


def _path(pod: Document) -> str:
    return core_path("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
