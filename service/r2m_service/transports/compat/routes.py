"""The trainers' routes: at the server's root, and the same below /runs/NAME for that run.

NeMo Gym, where it watches its rollouts, puts each one's name before a path: /ng-rollout/ID/verify.
"""

# No postponed annotations here: FastAPI reads them, and must find the types.

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from r2m.errors import TABLE, Code, Problem
from r2m_service.transports.compat.dialects import DIALECTS, Dialect, aggregated
from r2m_service.transports.compat.messages import (
    AggregateAnswer,
    AggregateRequest,
    ModelList,
    ModelOut,
    SeedSessionRequest,
    example_of,
)
from r2m_service.transports.compat.queries import Queries
from r2m_service.transports.compat.rewards import named, rewards_of
from r2m_service.transports.http.answers import failure
from r2m_service.transports.http.body import SMALL_BYTES, Intake
from r2m_service.transports.http.call import call, while_connected
from r2m_service.transports.http.docs import BODY, OPEN_RUN, READING, operation
from r2m_service.transports.interface import Application

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

TAG = "trainers"
MESSAGES = (*(one.request for one in DIALECTS), SeedSessionRequest, AggregateRequest)
"""Of bodies, for the OpenAPI document."""

OF_ROLLOUT = "/ng-rollout/{rollout}"
_OF_ROLLOUTS = ("verify", "seed_session")

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
    """A route whose errors have the statuses that trainers retry, with a slash at the end or none.

    A redirect to the path without its slash would lose the body, or make a GET of a POST.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches({**scope, "path": scope["path"].removesuffix("/")})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except Problem as problem:
                return failure(problem, status=status_of(problem.code))

        return handle


def compat(
    application: Application, intake: Intake, *, run: str | None, queries: Queries
) -> APIRouter:
    """The trainers' routes.

    Args:
        run: whose live head answers at the root; None: the frozen reward model.
        queries: how texts are read that were decoded from tokens.
    """
    routes = APIRouter(tags=[TAG], route_class=_Route)
    add = partial(_add, routes, run)
    reads = {"openrlhf": queries.samples, "llamafactory": queries.evaluated}
    for dialect in DIALECTS:
        if dialect.name in reads:
            dialect = replace(dialect, samples=reads[dialect.name])
        add(
            dialect.path,
            dialect.name,
            _scoring(application, intake, dialect),
            summary=dialect.summary,
            request=dialect.request,
            responses=_example(dialect.example),
            codes=(*BODY, *_TEXT, *dialect.codes),
        )
    add(
        "/seed_session",
        "seed_session",
        _answering(intake, SeedSessionRequest, lambda _: {}),
        summary="NeMo Gym's start of a rollout, of which nothing is kept",
        request=SeedSessionRequest,
        responses=_example({}),
        codes=BODY,
    )
    add(
        "/aggregate_metrics",
        "aggregate_metrics",
        _answering(intake, AggregateRequest, aggregated),
        summary="NeMo Gym's statistics of the rewards that it collected",
        request=AggregateRequest,
        responses=_example(example_of(AggregateAnswer)),
        codes=BODY,
    )
    add(
        "/reverify_mode",
        "reverify_mode",
        _reverify_mode,
        method="GET",
        summary="NeMo Gym asks whether a rollout may be verified again: it may",
        responses=_example("stateless"),
    )
    add(
        "/v1/models",
        "models",
        _models(application),
        method="GET",
        summary="The reward model, as OpenAI and vLLM list models",
        responses=_example(example_of(ModelList)),
        codes=READING[1:],
    )
    add(
        "/health",
        "health",
        _health(application),
        method="GET",
        summary="Whether the server takes calls, as vLLM answers it: without a body",
        responses={200: {"description": "It does."}},
        codes=(Code.NOT_READY,),
        codes_of_run=(),
        kind=Response,
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
            samples = await _off_the_loop(request, lambda: named(dialect.samples(message)))
            rewards = await while_connected(
                request,
                rewards_of(application, run, samples, partial(dialect.place, message)),
            )
            headers = {"Server-Timing": spent.header()} if spent.seconds else None
            answer = dialect.answer(message, rewards, lambda: application.server().model)
            return _Json(_plain(answer), headers=headers)

    return score


def _answering(intake: Intake, request: type[M], answer: Callable[[M], object]) -> _Endpoint:
    """Answers that need no reward model."""

    async def reply(run: str | None, call: Request) -> Response:
        async with intake.message(call, request) as message:
            value = await _off_the_loop(call, partial(answer, message))
            return _Json(_plain(value))

    return reply


async def _reverify_mode(run: str | None, request: Request) -> Response:
    return _Json("stateless")


def _models(application: Application) -> _Endpoint:
    started = int(time.time())

    async def models(run: str | None, request: Request) -> Response:
        if run is not None:
            await application.get_run(run)  # so that a wrong name is an error from the start
        server = application.server()
        one = ModelOut(id=server.model, created=started, max_model_len=server.max_length)
        return _Json(_plain(ModelList(data=[one])))

    return models


def _health(application: Application) -> _Endpoint:
    async def health(run: str | None, request: Request) -> Response:
        application.require_ready()
        return Response()

    return health


def _add(
    routes: APIRouter,
    configured: str | None,
    path: str,
    name: str,
    endpoint: _Endpoint,
    *,
    method: str = "POST",
    codes: tuple[Code, ...] = (),
    codes_of_run: tuple[Code, ...] = _OF_RUN,
    kind: type[Response] = JSONResponse,
    **documented: Any,
) -> None:
    """One endpoint at its paths.

    Args:
        configured: the run at the root.
        codes: errors, wherever it is.
        codes_of_run: further ones where it answers for a run.
        kind: of a success; a plain Response has no body.
    """

    async def at_root(request: Request) -> Response:
        return await endpoint(configured, request)

    async def of_run(run: str, request: Request) -> Response:
        return await endpoint(run, request)

    async def of_rollout(rollout: str, request: Request) -> Response:
        return await endpoint(configured, request)

    at_root_codes = codes_of_run if configured else ()
    served: list[tuple[str, Callable[..., Any], str, tuple[Code, ...]]] = [
        (path, at_root, name, at_root_codes),
        (f"/runs/{{run}}{path}", of_run, f"{name}_of_run", codes_of_run),
    ]
    if name in _OF_ROLLOUTS:
        served.append((f"{OF_ROLLOUT}{path}", of_rollout, f"{name}_of_rollout", at_root_codes))
    for where, handler, called, also in served:
        extra = operation(codes=(*codes, *also), status_of=status_of, **documented)
        routes.add_api_route(
            where, handler, methods=[method], name=called, response_class=kind, **extra
        )


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


async def _off_the_loop(request: Request, work: Callable[[], T]) -> T:
    # As with the body itself: thousands of texts take long enough that others would notice.
    large = int(request.headers.get("content-length", 0)) > SMALL_BYTES
    return await asyncio.to_thread(work) if large else work()


def _example(value: object) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"example": value}}
    return {200: {"description": "In the caller's own form.", "content": content}}
