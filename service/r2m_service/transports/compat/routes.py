"""The trainers' routes: at the server's root, and the same below /runs/NAME for that run."""

# No postponed annotations here: FastAPI reads them, and must find the types.

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from r2m.errors import TABLE, Code, Problem
from r2m_service.application.contract import SampleIn
from r2m_service.transports.compat.dialects import DIALECTS, Dialect
from r2m_service.transports.compat.messages import SeedSessionRequest
from r2m_service.transports.compat.rewards import named, rewards_of
from r2m_service.transports.http.answers import failure
from r2m_service.transports.http.body import SMALL_BYTES, Intake
from r2m_service.transports.http.call import call, while_connected
from r2m_service.transports.http.docs import BODY, OPEN_RUN, operation
from r2m_service.transports.interface import Application

TAG = "trainers"
MESSAGES = (*(one.request for one in DIALECTS), SeedSessionRequest)
"""Of bodies, for the OpenAPI document."""

_TEXT = (Code.TEXT_EMPTY, Code.TEXT_INVALID, Code.TEXT_TOO_LONG, Code.REWARD_NOT_FINITE)
_OF_RUN = (*OPEN_RUN, Code.FEEDBACK_MISSING, Code.HEAD_PRUNED, Code.HEAD_DAMAGED)


def status_of(code: Code) -> int:
    """The table's status; 503 where that is a 4xx that passes: a trainer gives up on any 4xx."""
    row = TABLE[code]
    return 503 if row.retryable and row.http < 500 else row.http


class _Json(JSONResponse):
    """In ASCII: what a trainer sent along comes back, lone surrogates as the escapes they were."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class _Route(APIRoute):
    """A route whose errors have the statuses that trainers retry."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except Problem as problem:
                return failure(problem, status=status_of(problem.code))

        return handle


def compat(application: Application, intake: Intake, *, run: str | None) -> APIRouter:
    """The trainers' routes.

    Args:
        run: whose live head answers at the root; None: the frozen reward model.
    """
    routes = APIRouter(tags=[TAG], route_class=_Route)
    for one in DIALECTS:
        _add(
            routes,
            one.path,
            one.name,
            _scoring(application, intake, one),
            run,
            summary=one.summary,
            request=one.request,
            responses=_example(one.example),
            codes=(*BODY, *_TEXT, *one.codes),
        )
    _add(
        routes,
        "/seed_session",
        "seed_session",
        _seeding(intake),
        run,
        summary="NeMo Gym's start of a rollout, of which nothing is kept",
        request=SeedSessionRequest,
        responses=_example({}),
        codes=BODY,
    )
    return routes


_Endpoint = Callable[[str | None, Request], Coroutine[Any, Any, Response]]


def _scoring(application: Application, intake: Intake, dialect: Dialect[Any]) -> _Endpoint:
    async def score(run: str | None, request: Request) -> Response:
        application.require_room(run)
        async with (
            call(request) as spent,
            intake.message(request, dialect.request) as message,
        ):
            samples = await _samples(dialect, message, request)
            rewards = await while_connected(
                request, rewards_of(application, run, samples, dialect.place)
            )
            headers = {"Server-Timing": spent.header()} if spent.seconds else None
            answer = dialect.answer(message, rewards, lambda: application.server().model)
            body = answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
            return _Json(body, headers=headers)

    return score


async def _samples(dialect: Dialect[Any], message: Any, request: Request) -> list[SampleIn]:
    def read() -> list[SampleIn]:
        return named(dialect.samples(message))

    # As with the body itself: thousands of texts take long enough that others would notice.
    large = int(request.headers.get("content-length", 0)) > SMALL_BYTES
    return await asyncio.to_thread(read) if large else read()


def _seeding(intake: Intake) -> _Endpoint:
    async def seed(run: str | None, request: Request) -> Response:
        async with intake.message(request, SeedSessionRequest):
            return JSONResponse({})

    return seed


def _add(
    routes: APIRouter,
    path: str,
    name: str,
    endpoint: _Endpoint,
    configured: str | None,
    *,
    codes: tuple[Code, ...],
    **documented: Any,
) -> None:
    """One endpoint at its two paths."""

    async def at_root(request: Request) -> Response:
        return await endpoint(configured, request)

    async def of_run(run: str, request: Request) -> Response:
        return await endpoint(run, request)

    for where, served, called, also in (
        (path, at_root, name, _OF_RUN if configured else ()),
        (f"/runs/{{run}}{path}", of_run, f"{name}_of_run", _OF_RUN),
    ):
        extra = operation(codes=(*codes, *also), status_of=status_of, **documented)
        routes.add_api_route(where, served, methods=["POST"], name=called, **extra)


def _example(value: object) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"example": value}}
    return {200: {"description": "In the caller's own form.", "content": content}}
