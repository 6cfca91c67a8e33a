"""Around a call that uses the device: its deadline, its timings, and a client that hangs up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from r2m.errors import Code, Problem
from r2m_service.application.timings import Timings, timed

T = TypeVar("T")

TIMEOUT = "X-Request-Timeout"
"""Header: seconds that the client waits for its answer, from the head of the request on."""


@asynccontextmanager
async def call(request: Request) -> AsyncGenerator[Timings]:
    """The whole of a call, body included; what is not done when its time is over is given up.

    Raises:
        Problem: deadline_exceeded; invalid_request for a timeout that is none.
    """
    seconds = _timeout(request)
    timer = asyncio.timeout(seconds)
    with timed() as spent:
        try:
            async with timer:
                yield spent
        except TimeoutError:
            if not timer.expired():
                raise
            raise Problem(
                Code.DEADLINE_EXCEEDED,
                f"the call was not done within the {seconds:g} seconds of its {TIMEOUT}",
            ) from None


def _timeout(request: Request) -> float | None:
    given = request.headers.get(TIMEOUT)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise Problem(
            Code.INVALID_REQUEST, f"{TIMEOUT} is a number of seconds, more than 0", field=TIMEOUT
        )
    return seconds


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await a use case, and give it up where its client hangs up.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    # The body has been read to its end: all that can come now is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass
