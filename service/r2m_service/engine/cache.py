"""A cache bounded in bytes: least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BytesCache(Generic[Key, Value]):
    """Maps keys to values of stated sizes. Used from one thread.

    Args:
        capacity: bytes. A value larger than that is not kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """The value, now the most recently used; or None."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, at the cost of the least recently used."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.bytes -= old[1]
        if size > self.capacity:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        while self.bytes > self.capacity:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.bytes -= dropped
