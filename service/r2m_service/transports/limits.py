"""Bounds on what clients may keep in memory: bytes in flight, and time without a byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from r2m.errors import Code, Problem

T = TypeVar("T")


class ByteBudget:
    """How many bytes of requests may be in memory at once, over both transports.

    A call holds its share from before its first byte is read until it is answered. Waiting
    callers are served in order, so a large stream is not starved by many small ones.

    Args:
        total: the bound; None: no bound beyond each call's own.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._used = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    @asynccontextmanager
    async def hold(self, size: int, *, wait: bool) -> AsyncGenerator[None]:
        """Hold `size` bytes.

        Args:
            size: the whole call's bytes.
            wait: wait for room (streams: this is their flow control) instead of being refused.

        Raises:
            Problem: too_large, where it could never fit; overloaded, where it does not fit now.
        """
        if self._total is not None and size > self._total:
            raise Problem(
                Code.TOO_LARGE,
                f"the request takes {size} bytes, this server holds {self._total} at most",
            )
        if wait:
            async with self._turn:
                while not self._fits(size):
                    self._freed.clear()
                    await self._freed.wait()
                self._used += size
        elif self._turn.locked() or not self._fits(size):
            raise Problem(
                Code.OVERLOADED, "the server holds as many bytes of requests as it may: retry later"
            )
        else:
            self._used += size
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()

    def _fits(self, size: int) -> bool:
        return self._total is None or self._used + size <= self._total


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Wait for a client's next bytes, not for ever.

    Raises:
        Problem: deadline_exceeded.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise Problem(
            Code.DEADLINE_EXCEEDED, f"no byte of the request came for {seconds:g} seconds"
        ) from None
