"""Bounds on what clients may keep in memory: bytes and requests in flight, time without a byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from r2m.errors import Code, Problem

T = TypeVar("T")

READY_SECONDS = 0.5
"""How often one who waits for a client looks whether the server is draining."""


class ByteBudget:
    """How many bytes of requests may be in memory at once, over both transports.

    A call holds its share from before its first byte is read until it is answered. Waiting
    callers are served in order, so a large stream is not starved by many small ones.

    Args:
        total: the bound; None: no bound beyond each call's own.

    Attributes:
        refused: calls that found no room, so far.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._used = 0
        self.refused = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    @property
    def total(self) -> int | None:
        """The bound."""
        return self._total

    @asynccontextmanager
    async def hold(
        self, size: int, *, wait: bool, patience: float | None = None
    ) -> AsyncGenerator[Share]:
        """Hold `size` bytes, or fewer once it is known that fewer are needed.

        Args:
            size: the whole call's bytes.
            wait: wait for room (streams: this is their flow control) instead of being refused.
            patience: seconds after which one who waits is refused after all; None: for ever.

        Raises:
            Problem: too_large, where it could never fit; overloaded, where it does not fit now.
        """
        if self._total is not None and size > self._total:
            raise Problem(
                Code.TOO_LARGE,
                f"the request takes {size} bytes, this server holds {self._total} at most",
            )
        if wait:
            try:
                async with asyncio.timeout(patience), self._turn:
                    while not self._fits(size):
                        self._freed.clear()
                        await self._freed.wait()
                    self._used += size
            except TimeoutError:
                raise self._full() from None
        elif self._turn.locked() or not self._fits(size):
            raise self._full()
        else:
            self._used += size
        share = Share(self, size)
        try:
            yield share
        finally:
            share.shrink(0)

    def give_back(self, size: int) -> None:
        """Bytes that a share needs no more."""
        self._used -= size
        self._freed.set()

    def _fits(self, size: int) -> bool:
        return self._total is None or self._used + size <= self._total

    def _full(self) -> Problem:
        self.refused += 1
        return Problem(
            Code.OVERLOADED, "the server holds as many bytes of requests as it may: retry later"
        )


class Share:
    """What one call holds of a budget."""

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self._budget = budget
        self.size = size

    def shrink(self, size: int) -> None:
        """Give back all but `size` bytes."""
        assert size <= self.size, "a share never grows: others may have what it would need"
        self._budget.give_back(self.size - size)
        self.size = size


class RequestLimit:
    """How many requests may be in hand at once, over both transports; streams are not counted.

    Args:
        most: the bound; None: none.

    Attributes:
        used: requests in hand now.
        refused: requests, so far.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.used = 0
        self.refused = 0

    @contextmanager
    def hold(self) -> Generator[None]:
        """Be one of them.

        Raises:
            Problem: overloaded.
        """
        if self.most is not None and self.used >= self.most:
            self.refused += 1
            raise Problem(
                Code.OVERLOADED, f"the server has {self.used} requests in hand: retry later"
            )
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1


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


@asynccontextmanager
async def while_ready(require_ready: Callable[[], None]) -> AsyncGenerator[None]:
    """Wait within for what a client sends, as long as the server takes work.

    What a client has not sent yet nobody has promised to do: it must not hold up a shutdown.

    Raises:
        Problem: not_ready.
    """
    loop = asyncio.get_running_loop()
    refused: Problem | None = None
    look: asyncio.TimerHandle | None = None

    def again() -> None:
        nonlocal refused, look
        try:
            require_ready()
            look = loop.call_later(READY_SECONDS, again)
        except Problem as problem:
            refused = problem
            timer.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as timer:
            look = loop.call_later(READY_SECONDS, again)
            yield
    except TimeoutError:
        if refused is None:
            raise
        raise refused from None
    finally:
        if look is not None:
            look.cancel()
