"""Request bodies: bounded, read as a stream, decoded by their content type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from r2m.errors import Code, Problem
from r2m_service.application.about import tell
from r2m_service.application.parsing import parse, parse_json
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.http.tensors import attach, decode
from r2m_service.transports.interface import Application
from r2m_service.transports.limits import ByteBudget, RequestLimit, while_ready, within

M = TypeVar("M")
Body = bytearray | memoryview
"""JSON, or a safetensors body."""

JSON = "application/json"
SAFETENSORS = "application/x-safetensors"
SMALL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Intake:
    """What a body may cost.

    Attributes:
        max_bytes: of one body.
        budget: of all bodies in flight.
        requests: how many may be in hand.
        application: asked whether the server takes work.
        idle_seconds: the longest pause between two pieces of a body.
        buffers: where the memory of safetensors bodies is from.
    """

    max_bytes: int
    budget: ByteBudget
    requests: RequestLimit
    application: Application
    idle_seconds: float
    buffers: BufferPool

    @asynccontextmanager
    async def message(
        self, request: Request, model: type[M], *, tensors: bool = False
    ) -> AsyncGenerator[M]:
        """The body as a message of the contract; its bytes are held until the block is left.

        Args:
            request: whose body has not been read.
            model: the contract's model.
            tensors: take safetensors bodies too.

        Raises:
            Problem: unsupported_media, length_required, too_large, overloaded,
                not_ready, deadline_exceeded, or invalid_request.
            ClientDisconnect: the client hung up while it sent.
        """
        media = _media(request, tensors=tensors)
        declared = _declared(request)
        if declared > self.max_bytes:
            raise self._too_large()
        with self.requests.hold():
            async with self.budget.hold(declared, wait=False):
                async with while_ready(self.application.require_ready):
                    body = await self._read(request, media, declared)
                tell(bytes=len(body))
                if len(body) > SMALL_BYTES:
                    # Megabytes of JSON take long enough that others would notice.
                    yield await asyncio.to_thread(_decoded, model, body)
                else:
                    yield _decoded(model, body)

    async def _read(self, request: Request, media: str, declared: int) -> Body:
        """The body, put piece by piece where it is to lie."""
        body: Body | None = None
        filled = 0
        pieces = aiter(request.stream())
        while True:
            try:
                piece = await within(self.idle_seconds, anext(pieces))
            except StopAsyncIteration:
                if body is None:
                    return self._memory(media, 0)
                return body if filled == len(body) else body[:filled]
            if filled + len(piece) > declared:
                # HTTP/1.1 lets nobody send more than was declared: nothing had been.
                raise _without_length()
            if body is None:  # not earlier: what never comes takes no memory
                body = self._memory(media, declared)
            body[filled : filled + len(piece)] = piece
            filled += len(piece)

    def _memory(self, media: str, size: int) -> Body:
        # The JSON parser wants memory of Python's own.
        return self.buffers.take(size) if media == SAFETENSORS else bytearray(size)

    def _too_large(self) -> Problem:
        return Problem(
            Code.TOO_LARGE,
            f"the body is larger than this server takes, {self.max_bytes} bytes: "
            "send fewer samples a call",
        )


def _media(request: Request, *, tensors: bool) -> str:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise Problem(
            Code.UNSUPPORTED_MEDIA, "the body must not be compressed (no Content-Encoding)"
        )
    media = request.headers.get("content-type", JSON).split(";")[0].strip().lower()
    if media in ("", JSON):
        return JSON
    if media == SAFETENSORS and tensors:
        return SAFETENSORS
    known = f"{JSON} or {SAFETENSORS}" if tensors else JSON
    raise Problem(Code.UNSUPPORTED_MEDIA, f"the body's content type must be {known}")


def _declared(request: Request) -> int:
    given = request.headers.get("content-length")
    if given is None:
        if "transfer-encoding" not in request.headers:
            return 0  # no body at all: what is missing in it is said below
        raise _without_length()
    if not (given.isascii() and given.isdigit()):
        raise Problem(Code.INVALID_REQUEST, "Content-Length is not a number")
    # Twenty digits are more than any limit, and cheap to convert.
    return int(given) if len(given) < 20 else 10**20


def _without_length() -> Problem:
    return Problem(
        Code.LENGTH_REQUIRED,
        "the body has no Content-Length (it is sent in chunks): state how long it is",
    )


def _decoded(model: type[M], body: Body) -> M:
    if isinstance(body, memoryview):
        return parse(model, attach(*decode(body)))
    return parse_json(model, body)
