"""Where boundaries are on CUDA: `synchronising` (the safe default) or `callbacks` (never waits).

`perseus_trainer.edges` tells how they work. Both look at the stream that is current when the hook is called: pipeline
schedules compute on one stream.
"""

from __future__ import annotations

from enum import StrEnum

from perseus_trainer.adapters import AdapterProblem
from perseus_trainer.edges import CallbackEdge, SynchronisingEdge
from perseus_trainer.session import Session


class BoundaryAt(StrEnum):
    """Where an adapter puts boundaries."""

    AUTO = "auto"  # SYNCHRONISED on CUDA, HOST elsewhere; an edge that the session has already stays
    HOST = "host"  # where Python is
    SYNCHRONISED = "synchronised"  # where the stream is, by waiting for it
    CALLBACK = "callback"  # where the stream is, by a host callback


def synchronising() -> SynchronisingEdge:
    """Return the edge that waits for the current stream."""
    import torch

    return SynchronisingEdge(lambda: torch.cuda.current_stream().synchronize())


def callbacks() -> CallbackEdge:
    """Return the edge that queues a host callback on the current stream (``cudaLaunchHostFunc``).

    Raises:
        AdapterProblem: cuda-bindings is not there; torch brings it for CUDA alone.
    """
    import torch

    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise AdapterProblem(
            f"callbacks on the stream need the package cuda-bindings ({error}): install it, or choose boundary "
            f'"{BoundaryAt.SYNCHRONISED.value}"'
        ) from None

    def launch(function: int, argument: int) -> None:
        (status,) = runtime.cudaLaunchHostFunc(torch.cuda.current_stream().cuda_stream, function, argument)
        if status != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"cudaLaunchHostFunc: {status.name}")

    return CallbackEdge(launch)


def place(session: Session, at: BoundaryAt | str, device_type: str) -> None:
    """Give a session the edge that is asked for.

    Args:
        session: whose boundaries.
        at: where they shall be.
        device_type: torch's name of the device that computes, such as ``cuda`` or ``cpu``.

    Raises:
        ValueError: `at` is unknown.
        AdapterProblem: what it needs is not installed.
    """
    asked = BoundaryAt(at)
    if asked is BoundaryAt.HOST:
        session.edge = None
    elif asked is BoundaryAt.CALLBACK:
        session.edge = callbacks()
    elif asked is BoundaryAt.SYNCHRONISED or (device_type == "cuda" and session.edge is None):
        session.edge = synchronising()
