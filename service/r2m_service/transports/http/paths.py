"""Answers to paths that no route has: they name the routes that may have been meant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from difflib import get_close_matches

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from r2m.errors import TABLE, Code, Problem
from r2m_service.transports.http.answers import failure, on_http_exception

_LONGEST = 200
"""Characters of a path that is compared; comparing takes their square."""


def on_lost(
    routers: Sequence[APIRouter], absent: Callable[[str], str | None]
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A handler of the router's exceptions.

    Args:
        routers: whose documented routes are named.
        absent: a sentence about a path of another server's interface, or None.
    """
    routes = [
        one
        for router in routers
        for one in router.routes
        if isinstance(one, APIRoute) and one.include_in_schema
    ]

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != TABLE[Code.NOT_FOUND].http:
            return await on_http_exception(request, error)
        path: str = request.scope["path"]
        advice = absent(path) if len(path) <= _LONGEST else None
        if advice is None and (near := _nearest(routes, path)):
            advice = f"did you mean {' or '.join(near)}?"
        told = f"{advice}; " if advice else ""
        return failure(
            Problem(Code.NOT_FOUND, f"there is no such path: {told}/openapi.json lists all of them")
        )

    return handle


def _nearest(routes: Sequence[APIRoute], path: str) -> list[str]:
    """The routes whose paths look most like this one, with their methods."""
    parts = path[:_LONGEST].split("/")
    filled: dict[str, APIRoute] = {}
    for route in routes:
        of_route = route.path.split("/")
        if len(of_route) == len(parts):  # a parameter stands for what the path has there
            pairs = zip(of_route, parts, strict=True)
            of_route = [given if known.startswith("{") else known for known, given in pairs]
        filled.setdefault("/".join(of_route), route)
    found = [filled[one] for one in get_close_matches("/".join(parts), filled, n=2, cutoff=0.75)]
    return [f"{'/'.join(sorted(one.methods or ()))} {one.path}" for one in found]
