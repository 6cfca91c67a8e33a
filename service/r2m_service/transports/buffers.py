"""Memory for hidden states as they arrive: aligned, and used again once nobody reads it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes; what torch itself aligns its tensors to."""

SMALLEST = 1 << 16
"""Below, the allocator's own memory is as good."""

Block = npt.NDArray[np.uint8]


def aligned(size: int) -> Block:
    """New memory of that many bytes, not zeroed, at a multiple of `ALIGNMENT`."""
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = -block.ctypes.data % ALIGNMENT
    return block[first : first + size]


class BufferPool:
    """Lends memory and keeps what comes back, up to a bound.

    New memory of many megabytes costs a page fault every 4 KiB, several times what filling it
    costs. Memory comes back by itself when the last view of it is gone (a tensor over it counts),
    in whatever thread that happens: nobody can hand back what the device still reads.

    Args:
        kept_bytes: of memory that nobody uses, at most.
        allocate: makes new memory, aligned; pinned memory where the device copies from it.
    """

    def __init__(self, kept_bytes: int = 0, allocate: Callable[[int], Block] = aligned) -> None:
        self._kept_bytes = kept_bytes
        self._allocate = allocate
        # Reentrant: a collection of garbage within may bring memory back.
        self._lock = threading.RLock()
        self._free: dict[int, list[Block]] = {}
        self._kept = 0

    @property
    def kept(self) -> int:
        """Bytes that are kept and not in use."""
        return self._kept

    def take(self, size: int) -> memoryview:
        """Writable memory of that many bytes, with whatever was in it."""
        if size < SMALLEST:
            small: Any = aligned(size)
            return memoryview(small)
        room = _rounded(size)
        with self._lock:
            free = self._free.get(room)
            block = free.pop() if free else None
            if block is not None:
                self._kept -= room
        if block is None:
            block = self._allocate(room)
        # A view of its own object: numpy's slices of it would not keep it, memoryviews do.
        lent: Any = block[:size]
        weakref.finalize(lent, self._give_back, block).atexit = False
        return memoryview(lent)

    def _give_back(self, block: Block) -> None:
        with self._lock:
            if block.nbytes > self._kept_bytes:
                return
            # What was asked for last is what is asked for next: other sizes make room for it.
            for room, free in list(self._free.items()):
                while (
                    free and room != block.nbytes and self._kept + block.nbytes > self._kept_bytes
                ):
                    free.pop()
                    self._kept -= room
            if self._kept + block.nbytes <= self._kept_bytes:
                self._free.setdefault(block.nbytes, []).append(block)
                self._kept += block.nbytes


def _rounded(size: int) -> int:
    """The next of four sizes an octave, so that samples of like length use the same memory."""
    step = 1 << max(size.bit_length() - 3, 0)
    return -(-size // step) * step
