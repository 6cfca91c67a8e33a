"""The REST interface: routes that decode, call one use case, and encode."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from r2m.errors import Code, Problem
from r2m_service.application.contract import ServerOut
from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.compat.routes import MESSAGES, compat
from r2m_service.transports.http.answers import (
    Guard,
    answer,
    on_http_exception,
    on_problem,
    on_validation_error,
)
from r2m_service.transports.http.body import Intake
from r2m_service.transports.http.docs import DocumentedApp, operation
from r2m_service.transports.http.labels import labels
from r2m_service.transports.http.metrics import Scrape
from r2m_service.transports.http.metrics import metrics as metrics_route
from r2m_service.transports.http.page import page
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
    metrics: Metrics = NO_METRICS,
    scrape: Scrape | None = None,
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
        metrics: hears of each call.
        scrape: gives what GET /metrics answers; None: there is no such path.
    """
    budget, requests = budget or ByteBudget(), requests or RequestLimit()
    memory = buffers or BufferPool()
    intake = Intake(max_body_bytes, budget, requests, application, idle_seconds, memory)
    app = DocumentedApp(
        title="R2M Serve",
        version="1",
        description=_DESCRIPTION,
        # The documentation pages load scripts from elsewhere, which an offline cluster has not.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.more_requests = MESSAGES
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_middleware(Guard, metrics=metrics)
    for router in (
        scoring(application, intake),
        runs(application, intake),
        heads(application, intake),
        labels(application, intake),
        compat(application, intake, run=compat_run),
        _server(application, budget, requests),
        page(),
    ):
        app.include_router(router)
    if scrape is not None:
        app.include_router(metrics_route(scrape))
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _server(application: Application, budget: ByteBudget, requests: RequestLimit) -> APIRouter:
    routes = APIRouter(tags=["server"])

    @routes.get("/v1/server", **operation("What this server holds", answer=ServerOut))
    async def server() -> Response:
        return answer(application.server())

    @routes.get("/livez", **operation("The process answers", responses=_status("alive")))
    async def livez() -> Response:
        return JSONResponse({"status": "alive"})

    @routes.get(
        "/readyz",
        **operation("The server takes calls", codes=(Code.NOT_READY,), responses=_READY),
    )
    async def readyz() -> Response:
        application.require_ready()
        samples, most = application.waiting()
        limits = {
            "inflight_bytes": _limit(budget.used, budget.total),
            "inflight_requests": _limit(requests.used, requests.most),
            "queue_samples": _limit(samples, most),
        }
        return JSONResponse({"status": "ready", "limits": limits})

    return routes


def _limit(used: int, most: int | None) -> dict[str, int | None]:
    return {"used": used, "limit": most}


def _status(word: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    example = {"application/json": {"example": {"status": word, **more}}}
    return {200: {"description": "It is so.", "content": example}}


_READY = _status(
    "ready",
    limits={
        "inflight_bytes": {"used": 8 << 20, "limit": 4 << 30},
        "inflight_requests": {"used": 3, "limit": 1024},
        "queue_samples": {"used": 96, "limit": 16384},
    },
)
