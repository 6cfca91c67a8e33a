"""What answers before the application can: probes while the model is loading."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from r2m.errors import Code, Problem
from r2m_service.transports.http.answers import failure


class Front:
    """An ASGI application that is alive at once, and passes calls on when it has been opened.

    Args:
        probes: whether it answers them; False: another address does.
    """

    def __init__(self, *, probes: bool = True) -> None:
        self._behind: ASGIApp | None = None
        self._probes = probes

    def open(self, behind: ASGIApp) -> None:
        """From now on, everything goes to this application."""
        self._behind = behind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if self._behind is not None:
            await self._behind(scope, receive, send)
        elif scope["type"] == "http":
            if self._probes and scope["path"] == "/livez":
                response = JSONResponse({"status": "alive"})
            else:
                response = failure(Problem(Code.NOT_READY, "the server is loading its model"))
            await response(scope, receive, send)
