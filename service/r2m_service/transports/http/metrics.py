"""GET /metrics, for any application: the API's own, or one on another address."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From an Accept header to the metrics and their media type."""


def metrics(scrape: Scrape) -> APIRouter:
    """The route. It is for monitors: not a part of the API, hence not of its document."""
    routes = APIRouter()

    @routes.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        text, media = await scrape(request.headers.get("accept", ""))
        # As it is: Starlette would add a second charset to a media type that has one.
        return Response(text, headers={"Content-Type": media})

    return routes
