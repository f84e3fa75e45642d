"""A memory of bounded weight for decoded documents: the least recently used go first.

Documents are decoded in milliseconds and are the same from visit to visit, often from job to job. Their key is what
identifies their content, so that nothing here can be stale.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Remembers values up to a total weight; a single value that is heavier than all is kept alone."""

    def __init__(self, limit: int) -> None:
        """Remember up to a total weight."""
        self._limit = limit
        self._weight = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Return what is remembered, None if it is not."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, weight: int = 1) -> V:
        """Remember a value, and return it."""
        known = self._values.pop(key, None)
        if known is not None:
            self._weight -= known[1]
        self._values[key] = (value, weight)
        self._weight += weight
        while self._weight > self._limit and len(self._values) > 1:
            _, (_, lighter) = self._values.popitem(last=False)
            self._weight -= lighter
        return value
