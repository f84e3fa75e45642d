"""Where a boundary is: by default where Python gets there, on an accelerator where the device does.

Python runs far ahead of a GPU: a hook's code is left when the kernels are queued, long before they have run. An edge
puts the boundary back to where it belongs, by one of two ways:

- `SynchronisingEdge` waits for the stream before it tells, as the paper's own client does. Safe, and what adapters
  choose: the GPU is idle for the few microseconds until Python has queued the next kernels.
- `CallbackEdge` queues a host callback and goes on. The callback must not enter Python: CUDA runs it on a thread of its
  own, and it would wait for the interpreter's lock while the holder of that lock waits for the stream. So the callback
  is the C library's ``sem_post``, and a thread that waits for the semaphore tells the boundary, when it gets the
  interpreter's lock: a few milliseconds late when the training thread computes in pure Python.

Nothing here knows CUDA (`perseus_trainer.adapters.cuda` does), and nothing here raises into training: what an edge
cannot do is said once, and the boundary is told at once.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("perseus.trainer")

Tell = Callable[[], None]
# Queues a C function, given by its address, with one argument, given by its address, behind the device's work.
Launch = Callable[[int, int], None]
_SEMAPHORE_BYTES = 64  # more than any C library's sem_t


class Edge(Protocol):
    """Decides when a boundary is told."""

    def reach(self, tell: Tell) -> None:
        """Call `tell` once the device has done everything that was queued before; never raises."""


class SynchronisingEdge:
    """Waits for the device, then tells."""

    def __init__(self, synchronise: Callable[[], object]) -> None:
        """Wait by calling `synchronise`, which returns when the device has done what was queued."""
        self._synchronise = synchronise
        self._broken = False

    def reach(self, tell: Tell) -> None:
        """Wait, then tell."""
        if not self._broken:
            try:
                self._synchronise()
            except Exception as error:  # noqa: BLE001 - the device's own error shows at training's next call
                self._broken = True
                logger.warning("the stream cannot be waited for (%s): boundaries are where Python is", error)
        tell()


class CallbackEdge:
    """Queues a callback behind the device's work, and tells when it has run."""

    def __init__(self, launch: Launch) -> None:
        """Queue callbacks by calling `launch` with a C function's and its argument's address."""
        library = ctypes.CDLL(None, use_errno=True)
        self._launch = launch
        self._semaphore = ctypes.create_string_buffer(_SEMAPHORE_BYTES)
        library.sem_init(self._semaphore, 0, 0)
        self._wait = library.sem_wait
        self._post_address = ctypes.cast(library.sem_post, ctypes.c_void_p).value or 0
        self._semaphore_address = ctypes.addressof(self._semaphore)
        self._queued: deque[Tell] = deque()
        # Two threads that queue must queue on both sides in one order.
        self._mutex = threading.Lock()
        self._broken = False
        # A callback that still waits on the device holds the semaphore's address: it is never freed.
        _KEPT.append(self)
        threading.Thread(target=self._tell_all, name="perseus-edge", daemon=True).start()

    def reach(self, tell: Tell) -> None:
        """Queue the boundary."""
        with self._mutex:
            if not self._broken:
                self._queued.append(tell)
                try:
                    self._launch(self._post_address, self._semaphore_address)
                    return
                except Exception as error:  # noqa: BLE001 - a hook never raises into training
                    self._queued.pop()
                    self._broken = True
                    logger.warning("no callback on the stream (%s): boundaries are where Python is", error)
        tell()

    def _tell_all(self) -> None:
        while True:
            if self._wait(self._semaphore) == 0:  # Else a signal interrupted the wait.
                self._queued.popleft()()


_KEPT: list[CallbackEdge] = []
