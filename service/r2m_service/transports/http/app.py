"""The REST interface: routes that decode, call one use case, and encode."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from r2m.errors import Problem
from r2m_service.application.contract import ServerOut
from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.application.tracing_port import NO_TRACING, Tracing
from r2m_service.transports.access import Gate
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.compat.absent import absent
from r2m_service.transports.compat.queries import Queries
from r2m_service.transports.compat.routes import MESSAGES, compat
from r2m_service.transports.http.answers import (
    Guard,
    answer,
    on_problem,
    on_validation_error,
)
from r2m_service.transports.http.body import Intake
from r2m_service.transports.http.docs import NO_TELEMETRY, DocumentedApp, operation
from r2m_service.transports.http.door import door
from r2m_service.transports.http.labels import labels
from r2m_service.transports.http.metrics import Scrape
from r2m_service.transports.http.ops import probing
from r2m_service.transports.http.page import page
from r2m_service.transports.http.paths import on_lost
from r2m_service.transports.http.runs import heads, runs
from r2m_service.transports.http.scoring import scoring
from r2m_service.transports.interface import Application
from r2m_service.transports.limits import ByteBudget, RequestLimit

_DESCRIPTION = """\
Rewards of RLHF rollouts, scored with the policy's own hidden states, by versioned reward heads
that follow the policy. Every error has one form, `{"error": {"code", "message", "retryable",
"field"}}`; `retryable` says whether the very same request may succeed later.
"""


def build_app(
    application: Application,
    *,
    max_body_bytes: int,
    budget: ByteBudget | None = None,
    requests: RequestLimit | None = None,
    idle_seconds: float = 60.0,
    buffers: BufferPool | None = None,
    compat_run: str | None = None,
    queries: Queries = Queries(),  # noqa: B008
    gate: Gate | None = None,
    probes: bool = True,
    metrics: Metrics = NO_METRICS,
    scrape: Scrape | None = None,
    tracing: Tracing = NO_TRACING,
) -> FastAPI:
    """The HTTP application.

    Args:
        application: the use cases.
        max_body_bytes: the largest body taken.
        budget: bytes in flight, shared with the other transport; None: no common bound.
        requests: requests in hand, shared likewise; None: no bound.
        idle_seconds: a body that pauses longer is given up.
        buffers: where the memory of safetensors bodies is from; None: new memory each time.
        compat_run: whose live head answers the trainers' own calls; None: the frozen reward model.
        queries: how trainers' texts are read that were decoded from tokens.
        gate: who is let in; None: everybody.
        probes: whether the routes of `ops` are here too; False: they have an address of their own.
        metrics: hears of each call.
        tracing: makes a span of each call.
        scrape: gives what GET /metrics answers, with the routes of `ops`; None: there is none.
    """
    budget, requests = budget or ByteBudget(), requests or RequestLimit()
    memory = buffers or BufferPool()
    intake = Intake(max_body_bytes, budget, requests, application, idle_seconds, memory)
    app = DocumentedApp(
        title="R2M Serve",
        version="1",
        description=_DESCRIPTION,
        dependencies=[door(gate or Gate(), compat_run=compat_run)],
        # The documentation pages load scripts from elsewhere, which an offline cluster has not.
        docs_url=None,
        redoc_url=None,
        # A route of ours instead: FastAPI's own would need no key.
        openapi_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        generate_unique_id_function=_operation_id,
    )
    app.more_requests = MESSAGES
    routers = (
        scoring(application, intake),
        runs(application, intake),
        heads(application, intake),
        labels(application, intake),
        compat(application, intake, run=compat_run, queries=queries),
        _server(application, app),
        *([probing(application, budget, requests, scrape)] if probes else []),
        page(),
    )
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_lost(routers, absent))
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_middleware(Guard, metrics=metrics, tracing=tracing)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _server(application: Application, app: FastAPI) -> APIRouter:
    routes = APIRouter(tags=["server"])

    @routes.get("/v1/server", **operation("What this server holds", answer=ServerOut))
    async def server() -> Response:
        return answer(application.server())

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(app.openapi())

    return routes
