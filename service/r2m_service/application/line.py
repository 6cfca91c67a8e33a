"""The line for the device: how many samples may wait, and how much of it one run may take."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from r2m.errors import Code, Problem


class Line:
    """Counts samples from the moment they are known until they are answered. One event loop's.

    A run may take as many places as are free: half of the line where it is alone, a third where
    another one floods it too. So whoever comes finds room, whatever the others do.

    A call is let in or refused as a whole, before its body is read and its samples are known. One
    that was let in stays, so the line may be longer than its bound by the calls in hand.

    Args:
        most: places.

    Attributes:
        refused: calls, so far.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.refused = 0
        self._held: Counter[str] = Counter()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._left = asyncio.Event()

    @property
    def used(self) -> int:
        """Places taken now."""
        return self._held.total()

    def require_room(self, flow: str) -> None:
        """Refuse a call whose run (or "") has no room, or has streams that wait for it.

        Raises:
            Problem: overloaded.
        """
        if self._turns[flow].locked() or not self._room(flow):
            self.refused += 1
            raise Problem(
                Code.OVERLOADED,
                f"{self.used} samples wait for the device, {self._held[flow]} of them of this "
                "run: retry later",
            )

    @contextmanager
    def hold(self, flow: str, count: int) -> Generator[None]:
        """Take places for the samples of a call that was let in."""
        self._held[flow] += count
        try:
            yield
        finally:
            self._leave(flow, count)

    @asynccontextmanager
    async def wait(self, flow: str) -> AsyncGenerator[None]:
        """Take a place as soon as there is one: for streams. Those of one run wait in order."""
        async with self._turns[flow]:
            while not self._room(flow):
                self._left.clear()
                await self._left.wait()
            self._held[flow] += 1
        try:
            yield
        finally:
            self._leave(flow, 1)

    def _leave(self, flow: str, count: int) -> None:
        self._held[flow] -= count
        if not self._held[flow]:
            del self._held[flow]
        self._left.set()

    def _room(self, flow: str) -> bool:
        return self._held[flow] < max(1, self.most - self.used)
