"""Bounds on what strangers may cost: messages of one trainer, connections of one pod, connections in all.

Threads of one process take turns (Python's global lock), so that a trainer in an endless loop would take time from its
neighbours. Whoever goes beyond a bound is read slowly or not at all, and only it notices: its own sends are dropped,
its own clock is released for the mismatch, its own training goes on.
"""

from __future__ import annotations

import threading
import time

MESSAGES_PER_SECOND = 5000.0  # of one trainer: some ten times the densest schedules
ACCEPTS_PER_SECOND = 500.0
CONNECTIONS = 256
CONNECTIONS_OF_POD = 32  # a pod with 16 GPUs, each trainer restarting
PAUSE_SECONDS = 0.1


class Rate:
    """A bound on events in a second, with bursts of one second's worth.

    Attributes:
        throttled: how often it was reached.
    """

    def __init__(self, per_second: float, pause_seconds: float = PAUSE_SECONDS) -> None:
        """Begin with one second's worth."""
        self.throttled = 0
        self._per_second = per_second
        self._pause = pause_seconds
        self._tokens = per_second
        self._filled_seconds = time.monotonic()

    def spend(self, events: int = 1) -> None:
        """Take events into account; waits a little when there were too many."""
        now = time.monotonic()
        filled = self._tokens + (now - self._filled_seconds) * self._per_second
        self._tokens = min(self._per_second, filled) - events
        self._filled_seconds = now
        if self._tokens < 0:
            self.throttled += 1
            time.sleep(self._pause)


class Places:
    """How many connections there may be at once, in all and of each pod."""

    def __init__(self, total: int = CONNECTIONS, of_pod: int = CONNECTIONS_OF_POD) -> None:
        """Begin empty."""
        self._total = total
        self._of_pod = of_pod
        self._taken = 0
        self._by_pod: dict[str, int] = {}
        self._mutex = threading.Lock()

    def enter(self) -> bool:
        """Take a place for somebody not yet known; False if there is none."""
        with self._mutex:
            if self._taken >= self._total:
                return False
            self._taken += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._mutex:
            self._taken -= 1

    def enter_of(self, pod_uid: str) -> bool:
        """Take one of a pod's places; False if it has no more."""
        with self._mutex:
            taken = self._by_pod.get(pod_uid, 0)
            if taken >= self._of_pod:
                return False
            self._by_pod[pod_uid] = taken + 1
            return True

    def leave_of(self, pod_uid: str) -> None:
        """Give one of a pod's places back."""
        with self._mutex:
            self._by_pod[pod_uid] -= 1
            if not self._by_pod[pod_uid]:
                del self._by_pod[pod_uid]
