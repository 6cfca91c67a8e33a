"""Asks for the key of a gRPC call, before a message of it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio

from r2m.errors import Problem
from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.application.tracing_port import NO_TRACING, Tracing
from r2m_service.transports.access import OF_METHOD, Gate
from r2m_service.transports.arrival import REQUEST_ID, TRACE_KEYS, arrive, brought
from r2m_service.transports.counting import UNKNOWN, counted, snake
from r2m_service.transports.grpc.errors import Context, abort
from r2m_service.transports.grpc.streams import drain
from r2m_service.transports.limits import ByteBudget

AUTHORIZATION = "authorization"
_OURS = "/r2m.v1."
_LOOKED_AT = frozenset({AUTHORIZATION, REQUEST_ID, *TRACE_KEYS})

MOST_DRAINED = 4
"""Refused streams at once whose messages are read to hear out their clients."""


class Door(grpc.aio.ServerInterceptor):
    """Stands before every method, health and reflection included.

    It runs in the task of its call, so that the handler knows whose call it is.

    Args:
        gate: who is let in.
        budget: bytes in flight.
        max_bytes: of one message.
        metrics: hears of calls that are refused here.
        tracing: makes a span of each call.
    """

    def __init__(
        self,
        gate: Gate,
        budget: ByteBudget,
        max_bytes: int,
        *,
        metrics: Metrics = NO_METRICS,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._gate = gate
        self._metrics = metrics
        self._tracing = tracing
        self._budget = budget
        self._reserve = max_bytes if budget.total is None else min(max_bytes, budget.total)
        self._drained = 0

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None:  # there is no such method, and gRPC says so
            return None
        name = handler_call_details.method
        sent = _sent(handler_call_details)
        arrive(brought(sent), self._tracing)
        keys = [value for key, value in sent if key == AUTHORIZATION]
        try:
            self._gate.admit(OF_METHOD.get(name), keys[0] if keys else None)
        except Problem as problem:
            method = snake(name.rpartition("/")[2]) if name.startswith(_OURS) else UNKNOWN
            return self._refusing(
                problem, method, stream=handler.request_streaming and handler.response_streaming
            )
        return handler

    def _refusing(self, problem: Problem, method: str, *, stream: bool) -> Any:
        async def refuse(_: Any, context: Context) -> None:
            with contextlib.suppress(Problem), counted(self._metrics, "grpc", method):
                if stream:
                    await self._hear_out(context)
                raise problem
            await abort(context, problem)

        # On the wire every method is a stream of messages, both ways.
        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _hear_out(self, context: Context) -> None:
        """Let the client of a refused stream come to its end, so that it hears the refusal.

        What it sends is reserved like anybody's. A stranger must not take the room of others, so
        only a few are heard out, and none where the server is full.
        """
        if self._drained >= MOST_DRAINED:
            return
        self._drained += 1
        try:
            with contextlib.suppress(Problem):
                async with self._budget.hold(self._reserve, wait=False):
                    await drain(context)
        finally:
            self._drained -= 1


def _sent(call: grpc.HandlerCallDetails) -> list[tuple[str, str]]:
    """The metadata that says whose call it is."""
    metadata = cast("tuple[tuple[str, str | bytes], ...]", call.invocation_metadata or ())
    return [
        (key, value if isinstance(value, str) else value.decode(errors="replace"))
        for key, value in metadata
        if key in _LOOKED_AT
    ]
