"""Answers and errors as HTTP responses."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r2m.errors import Code, Problem
from r2m_service.application.about import tell
from r2m_service.application.contract import Answer
from r2m_service.application.metrics_port import CANCELLED, NO_METRICS, Metrics
from r2m_service.application.parsing import parameter_problem
from r2m_service.application.timings import Timings
from r2m_service.application.tracing_port import NO_TRACING, Tracing
from r2m_service.transports.arrival import REQUEST_ID, TRACE_KEYS, arrive, brought
from r2m_service.transports.counting import UNKNOWN, counted, note
from r2m_service.transports.failures import only_problems, retry_after

log = logging.getLogger(__name__)


def answer(value: Answer, *, status: int = 200, spent: Timings | None = None) -> Response:
    """A message of the contract, and where its time went; what is absent is left out."""
    headers = {"Server-Timing": spent.header()} if spent and spent.seconds else None
    body = value.model_dump_json(exclude_none=True)
    return Response(body, status, headers=headers, media_type="application/json")


def failure(
    problem: Problem, *, headers: dict[str, str] | None = None, status: int | None = None
) -> Response:
    """A problem in the one form of errors, with its status from the table unless one is given."""
    note(problem.code.value)
    sent = dict(headers or {})
    if problem.row.retryable:
        sent["Retry-After"] = str(retry_after(problem.code))
    if problem.code is Code.UNAUTHENTICATED:
        sent["WWW-Authenticate"] = 'Bearer realm="r2m"'
    # ASCII with escapes, so that no text whatever can fail to be encoded.
    body = json.dumps({"error": problem.as_dict()}).encode()
    return Response(body, status or problem.row.http, headers=sent, media_type="application/json")


PROBES = frozenset({"livez", "readyz", "health", "health_of_run", "metrics"})
"""Routes that are asked every few seconds, whatever the server does."""

_SAME = {"score_run": "score", "server": "get_server", "archive_run": "delete_run"}


def method_of(route: str | None) -> str:
    """A route's name as a label: where gRPC has the same method, that one's."""
    if route is None:
        return UNKNOWN
    return _SAME.get(route, route.removesuffix("_of_run").removesuffix("_of_rollout"))


def _route(scope: Scope) -> str | None:
    name: Any = getattr(scope.get("route"), "name", None)
    return name if isinstance(name, str) else None


_REQUEST_ID = REQUEST_ID.encode()
_LOOKED_AT = {key.encode(): key for key in (REQUEST_ID, *TRACE_KEYS)}


def _headers(scope: Scope) -> dict[str, str]:
    """Those that say whose call it is."""
    return brought(
        (_LOOKED_AT[key], value.decode("latin-1"))
        for key, value in scope["headers"]
        if key in _LOOKED_AT
    )


async def on_problem(request: Request, error: Exception) -> Response:
    """The application, or a decoder, refused."""
    assert isinstance(error, Problem)
    return failure(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """The router found no route; nothing else raises these."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        problem = Problem(
            Code.METHOD_NOT_ALLOWED,
            f"{request.method} is not a method of this path; allowed: {allowed.get('Allow', '')}",
        )
        return failure(problem, headers=allowed)
    if error.status_code == 404:
        return failure(
            Problem(Code.NOT_FOUND, "there is no such path; /openapi.json lists all of them")
        )
    return failure(Problem(Code.INVALID_REQUEST, str(error.detail)))


async def on_validation_error(request: Request, error: Exception) -> Response:
    """The framework could not read a parameter of the path or the query."""
    assert isinstance(error, RequestValidationError)
    return failure(parameter_problem(error.errors()[0]))


class Guard:
    """Answers 503 for our own bugs and for work cut off at shutdown; lets go who hung up.

    Outermost, so it is here that calls are counted, and get their name in the log.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics = NO_METRICS, tracing: Tracing = NO_TRACING
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET: the server sends the head of its answer alone
            scope = {**scope, "method": "GET"}
        name = arrive(_headers(scope), self._tracing).request_id.encode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                tell(status=message["status"])
                message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, name)]
            await send(message)

        with counted(self._metrics, "http", UNKNOWN) as outcome:
            try:
                await self._guarded(scope, receive, named)
            finally:
                route = _route(scope)
                outcome.method = method_of(route)
                outcome.counts = route not in PROBES

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        async def run() -> None:
            try:
                await self._app(scope, receive, watched)
            except (ClientDisconnect, OSError) as error:
                # An OSError of ours (a disk) comes as storage_failed; this one is the socket's.
                if not isinstance(error, ClientDisconnect) and not started:
                    raise
                note(CANCELLED)
                log.debug("the client of %s hung up", method_of(_route(scope)))

        try:
            await only_problems(run(), name=f"{scope['method']} {scope['path']!r}")
        except Problem as problem:
            if started:  # the client sees a body cut short, never a whole wrong one
                raise
            await failure(problem)(scope, receive, send)
        except asyncio.CancelledError:
            # Only the end of the drain time cancels a request. Nobody waits for this task.
            if not started:
                late = Problem(Code.NOT_READY, "the server shut down before the work was done")
                await failure(late)(scope, receive, send)
