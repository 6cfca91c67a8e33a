"""Asks for the key of a gRPC call, before a message of it is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio

from r2m.errors import Problem
from r2m_service.transports.access import OF_METHOD, Gate
from r2m_service.transports.grpc.errors import Context, abort

AUTHORIZATION = "authorization"


class Door(grpc.aio.ServerInterceptor):
    """Stands before every method, health and reflection included.

    It runs in the task of its call, so that the handler knows whose call it is.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

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
        try:
            self._gate.admit(OF_METHOD.get(name), _authorization(handler_call_details))
        except Problem as problem:
            return _refusing(problem)
        return handler


def _authorization(call: grpc.HandlerCallDetails) -> str | None:
    metadata = cast("tuple[tuple[str, str | bytes], ...]", call.invocation_metadata or ())
    for key, value in metadata:
        if key == AUTHORIZATION:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return None


def _refusing(problem: Problem) -> Any:
    async def refuse(_: Any, context: Context) -> None:
        await abort(context, problem)

    # On the wire every method is a stream of messages, both ways.
    return grpc.stream_stream_rpc_method_handler(refuse)
