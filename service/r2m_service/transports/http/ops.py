"""What operators' tools ask: routes for the main address, or for one of their own."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from r2m.errors import Code, Problem
from r2m_service.transports.http.answers import Guard, on_http_exception, on_problem
from r2m_service.transports.http.docs import NO_TELEMETRY, operation
from r2m_service.transports.http.metrics import Scrape, metrics
from r2m_service.transports.interface import Application
from r2m_service.transports.limits import ByteBudget, RequestLimit


def build_ops(
    application: Application,
    *,
    budget: ByteBudget,
    requests: RequestLimit,
    scrape: Scrape | None = None,
) -> FastAPI:
    """An application of these routes alone, for an address of its own: no keys, no bodies.

    Args:
        application: the use cases.
        budget: bytes in flight, to be shown.
        requests: requests in hand, to be shown.
        scrape: gives what GET /metrics answers; None: there is no such path.
    """
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_middleware(Guard)
    app.include_router(probing(application, budget, requests, scrape))
    return app


def probing(
    application: Application,
    budget: ByteBudget,
    requests: RequestLimit,
    scrape: Scrape | None = None,
) -> APIRouter:
    """Whether the server lives, and whether it takes calls; and its metrics."""
    routes = APIRouter(tags=["server"])
    if scrape is not None:
        routes.include_router(metrics(scrape))

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
