"""How many messages one trainer may send: whoever sends more is read slowly, and only it notices.

Threads of one process take turns (Python's global lock), so that a trainer in an endless loop would take time from its
neighbours. Beyond the bound its messages stay in the kernel's buffer: its own sends are dropped, its own clock is
released for the mismatch, its own training goes on.
"""

from __future__ import annotations

import time

MESSAGES_PER_SECOND = 5000.0  # 64 GPUs' worth of the densest schedules seen
PAUSE_SECONDS = 0.1


class MessageRate:
    """A bound on one connection's messages.

    Attributes:
        throttled: how often it was reached.
    """

    def __init__(self) -> None:
        """Begin with one second's worth."""
        self.throttled = 0
        self._tokens = MESSAGES_PER_SECOND
        self._filled_seconds = time.monotonic()

    def spend(self, messages: int) -> None:
        """Take messages into account; waits a little when there were too many."""
        now = time.monotonic()
        filled = self._tokens + (now - self._filled_seconds) * MESSAGES_PER_SECOND
        self._tokens = min(MESSAGES_PER_SECOND, filled) - messages
        self._filled_seconds = now
        if self._tokens < 0:
            self.throttled += 1
            time.sleep(PAUSE_SECONDS)
