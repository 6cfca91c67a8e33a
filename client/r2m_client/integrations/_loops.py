"""One client for each event loop: connections belong to the loop that opened them.

Reward functions are called from whatever loop their worker runs, and nobody tells them when it
ends. An asynchronous generator is told: a loop that is shut down closes those that it has started,
as asyncio.run does, and with this one its client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from r2m_client import AsyncClient


@dataclass(frozen=True, slots=True)
class Address:
    """Which rewards are asked for.

    Attributes:
        url: of the server.
        run: whose live head; None: the frozen reward model.
        timeout: seconds for one call, with all its retries.
    """

    url: str
    run: str | None
    timeout: float

    @staticmethod
    def of(url: str | None = None, run: str | None = None, timeout: float | None = None) -> Address:
        """From what is given, else from R2M_URL, R2M_RUN and R2M_TIMEOUT (300 seconds).

        Raises:
            ValueError: there is no URL, or the timeout is no number.
        """
        found = url or os.environ.get("R2M_URL")
        if not found:
            raise ValueError(
                "which R2M server? Give `url` or set R2M_URL, such as http://127.0.0.1:8080"
            )
        seconds = timeout if timeout is not None else float(os.environ.get("R2M_TIMEOUT") or 300)
        return Address(found, run or os.environ.get("R2M_RUN") or None, seconds)


def _open(address: Address) -> AsyncClient:
    return AsyncClient(address.url, timeout=address.timeout)


class LoopClients:
    """Opens a client where a loop has none yet.

    Args:
        opens: makes one; a test gives a fake's.
    """

    def __init__(self, opens: Callable[[Address], AsyncClient] = _open) -> None:
        self.opens = opens
        self._held: WeakKeyDictionary[
            asyncio.AbstractEventLoop,
            dict[Address, tuple[AsyncClient, AsyncGenerator[AsyncClient]]],
        ] = WeakKeyDictionary()

    async def get(self, address: Address) -> AsyncClient:
        """The running loop's client for an address; closed when that loop is shut down."""
        held = self._held.setdefault(asyncio.get_running_loop(), {})
        if address not in held:
            lifetime = self._lifetime(address)
            held[address] = (await anext(lifetime), lifetime)
        return held[address][0]

    async def close(self) -> None:
        """Close the running loop's clients now, where nothing will shut it down."""
        for _, lifetime in self._held.pop(asyncio.get_running_loop(), {}).values():
            await lifetime.aclose()

    async def _lifetime(self, address: Address) -> AsyncGenerator[AsyncClient]:
        # Nothing is awaited before the client is there, so no second call can come between.
        async with self.opens(address) as client:
            yield client
