"""Connections that were refused: counted by reason, and whose they were, for those who ask why a pod is not served."""

from __future__ import annotations

import threading
import time

from perseus_daemonset.pods import Pod

# A refused trainer comes again after 5 s.
FRESH_SECONDS = 15.0


class Refusals:
    """The book of refusals.

    Attributes:
        counts: by reason.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.counts: dict[str, int] = {}
        self._mutex = threading.Lock()
        self._pods: dict[str, tuple[Pod, str, float]] = {}  # by UID: the pod, the reason, and when

    def count(self, reason: str, pod: Pod | None = None) -> None:
        """Count a refusal, of a pod of this node where it is known which."""
        with self._mutex:
            self.counts[reason] = self.counts.get(reason, 0) + 1
            if pod is not None and pod.job:
                self._pods[pod.uid] = pod, reason, time.monotonic()

    def forget(self, pod_uid: str) -> None:
        """A pod is gone."""
        with self._mutex:
            self._pods.pop(pod_uid, None)

    def fresh(self) -> list[tuple[Pod, str]]:
        """Return the pods that are being refused, and why."""
        oldest = time.monotonic() - FRESH_SECONDS
        with self._mutex:
            return [(pod, reason) for pod, reason, when in self._pods.values() if when > oldest]
