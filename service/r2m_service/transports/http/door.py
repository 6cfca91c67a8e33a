"""Asks for the key of an HTTP call, before anything else is done for it."""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from starlette.requests import Request

from r2m_service.transports.access import OF_ROUTE, Gate, require_alias, require_run

AUTHORIZATION = "authorization"


def door(gate: Gate, *, compat_run: str | None) -> Any:
    """A dependency for all routes.

    Args:
        gate: who is let in.
        compat_run: the run of the trainers' routes at the root.
    """
    trainers = {name.removesuffix("_of_run") for name in OF_ROUTE if name.endswith("_of_run")}

    # Not a plain function: that would run in a thread, and keep the caller to itself.
    async def admit(request: Request) -> None:
        route: str = request.scope["route"].name
        gate.admit(OF_ROUTE.get(route), request.headers.get(AUTHORIZATION))
        of_root = compat_run if route.removesuffix("_of_rollout") in trainers else None
        require_run(request.path_params.get("run", of_root))
        if "alias" in request.path_params:
            require_alias(request.path_params["alias"])

    return Depends(admit)
