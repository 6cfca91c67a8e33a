"""Unary calls: one message in, once there is room for it; one answer out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc.aio

from r2m.errors import Code, Problem
from r2m_service.application import about
from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.application.timings import timed
from r2m_service.transports.access import require_run
from r2m_service.transports.grpc.errors import Context, or_abort
from r2m_service.transports.grpc.messages import decode, to_bytes, to_value
from r2m_service.transports.grpc.methods import Unary
from r2m_service.transports.grpc.trailers import tell
from r2m_service.transports.interface import Application
from r2m_service.transports.limits import ByteBudget, RequestLimit, Share, while_ready, within

ROOM_SECONDS = 1.0
"""How long a call stands in line for the bytes that reading its message may take."""


class UnaryCalls:
    """Makes the handlers.

    gRPC says nowhere how large a message is before it is read. So the largest there may be is held
    while it is read, and what it has not taken is given back.

    Args:
        application: the use cases.
        max_bytes: of one message.
        budget: bytes in flight.
        requests: calls in hand.
        idle_seconds: for one message to come.
        metrics: hears of each call.
    """

    def __init__(
        self,
        application: Application,
        *,
        max_bytes: int,
        budget: ByteBudget,
        requests: RequestLimit,
        idle_seconds: float,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._metrics = metrics
        self._application = application
        total = budget.total
        self._reserve = max_bytes if total is None else min(max_bytes, total)
        self._budget = budget
        self._requests = requests
        self._idle_seconds = idle_seconds

    def handler(
        self, name: str, method: Unary
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]:
        """The handler of one method."""

        async def handle(_: AsyncIterator[bytes], context: Context) -> bytes:
            work = self._call(method, context)
            return await or_abort(context, work, name=name, metrics=self._metrics)

        return handle

    async def _call(self, method: Unary, context: Context) -> bytes:
        with self._requests.hold(), timed() as spent:
            room = self._budget.hold(self._reserve, wait=True, patience=ROOM_SECONDS)
            async with room as share:
                body = to_value(decode(method.request, await self._message(context, share)))
                require_run(body.get("run"))
                answer = await method.call(self._application, body)
                tell(context, spent)
                return to_bytes(answer, method.answer)

    async def _message(self, context: Context, share: Share) -> bytes:
        async with while_ready(self._application.require_ready):
            raw: Any = await within(self._idle_seconds, context.read())
        if raw is grpc.aio.EOF:
            raise Problem(Code.INVALID_REQUEST, "the call holds no message")
        about.tell(bytes=len(cast("bytes", raw)))
        share.shrink(min(len(cast("bytes", raw)), share.size))
        return cast("bytes", raw)
