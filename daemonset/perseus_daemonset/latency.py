"""How long boundaries wait for their NVML call, counted where it hurries.

A histogram of the Prometheus library costs a boundary as much as its NVML call, when what it touches is no longer in
the processor's caches. This one is a list of numbers that one thread at a time adds to (the holder of the GPU's hand);
the metrics page makes a histogram of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

BUCKETS_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_NANOSECONDS = 1_000_000_000
_BOUNDS = [round(each * _NANOSECONDS) for each in BUCKETS_SECONDS]


class CallLatency:
    """Times from a boundary's receipt to the end of its call, for one GPU."""

    __slots__ = ("_counts", "_nanoseconds")

    def __init__(self) -> None:
        """Begin with none."""
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._nanoseconds = 0

    def observe(self, nanoseconds: int) -> None:
        """Count one; one thread at a time."""
        self._counts[bisect_left(_BOUNDS, nanoseconds)] += 1
        self._nanoseconds += nanoseconds

    @staticmethod
    def histogram(latencies: Iterable[CallLatency]) -> tuple[list[tuple[str, float]], float]:
        """Return all of them as Prometheus's cumulative buckets, and their sum in seconds."""
        every = list(latencies)
        counts = [sum(each) for each in zip([0] * (len(_BOUNDS) + 1), *(each._counts for each in every), strict=True)]
        bounds = [*(str(each) for each in BUCKETS_SECONDS), "+Inf"]
        buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(counts), strict=True)]
        return buckets, sum(each._nanoseconds for each in every) / _NANOSECONDS
