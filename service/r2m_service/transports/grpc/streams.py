"""The streaming methods: AlignStream and GetHeadWeights."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import grpc.aio

from r2m.errors import Code, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.application import about
from r2m_service.application.contract import AlignAnswer, AlignPending, AlignRequest, Progress
from r2m_service.application.parsing import parse
from r2m_service.application.timings import timed
from r2m_service.transports.access import require_run
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.grpc.chunks import chunk_of
from r2m_service.transports.grpc.errors import Context
from r2m_service.transports.grpc.messages import decode, to_bytes, to_value
from r2m_service.transports.grpc.trailers import tell
from r2m_service.transports.grpc.uploads import MAX_CHUNK_BYTES, Upload
from r2m_service.transports.interface import Application
from r2m_service.transports.limits import ByteBudget, while_ready, within

PROGRESS_SECONDS = 0.3
DRAIN_SECONDS = 1.0
_CHUNK = pb.AlignStreamRequest.DESCRIPTOR.fields_by_name["chunk"].number


class AlignStream:
    """One update whose hidden states come in chunks.

    Args:
        application: the use cases.
        max_bytes: of the tensors of one call.
        budget: bytes in flight; a stream waits for its share.
        idle_seconds: the longest pause between two messages of the client.
        buffers: where the tensors' memory is from.
    """

    def __init__(
        self,
        application: Application,
        *,
        max_bytes: int,
        budget: ByteBudget,
        idle_seconds: float,
        buffers: BufferPool | None = None,
    ) -> None:
        self._application = application
        self._max_bytes = max_bytes
        self._budget = budget
        self._idle_seconds = idle_seconds
        self._buffers = buffers or BufferPool()

    async def __call__(self, context: Context) -> None:
        """Read the request and its chunks, align, write progress and the answer.

        Raises:
            Problem: of the stream's form, of the limits, or of the use case.
        """
        try:
            await self._run(context)
        except Problem as problem:
            if problem.code is not Code.DEADLINE_EXCEEDED:
                await drain(context)
            raise

    async def _run(self, context: Context) -> None:
        async with while_ready(self._application.require_ready):
            raw = await self._next(context)
        first = None if raw is None else decode(pb.AlignStreamRequest, raw)
        if raw is None or first is None or first.WhichOneof("part") != "request":
            raise Problem(
                Code.INVALID_REQUEST,
                "the stream's first message must be its request",
                field="request",
            )
        body = to_value(first.request)
        run = body.pop("run")
        require_run(run)
        request = parse(AlignRequest, body)
        upload = Upload(request, self._buffers)
        if upload.size > self._max_bytes:
            raise Problem(
                Code.TOO_LARGE,
                f"the hidden states take {upload.size} bytes, a call may bring {self._max_bytes}: "
                "send fewer groups a call",
            )
        about.tell(bytes=len(raw) + upload.size)
        async with self._budget.hold(len(raw) + upload.size, wait=True):
            async with while_ready(self._application.require_ready):
                await self._receive(context, upload)
            with timed() as spent:
                answer = await self._align(context, run, request)
            tell(context, spent)
            part = pb.AlignStreamResponse()
            part.answer.MergeFromString(to_bytes(answer, pb.AlignResponse))
            await context.write(part.SerializeToString())

    async def _receive(self, context: Context, upload: Upload) -> None:
        while (raw := await self._next(context)) is not None:
            chunk = chunk_of(raw, _CHUNK)
            if chunk is not None:
                upload.add(*chunk)
                continue
            part = decode(pb.AlignStreamRequest, raw)
            if part.WhichOneof("part") != "chunk":
                raise Problem(
                    Code.INVALID_REQUEST,
                    "after the stream's first message come chunks only",
                    field="chunk",
                )
            upload.add(part.chunk.id, part.chunk.data)
        upload.finish()

    async def _next(self, context: Context) -> bytes | None:
        """The client's next message; None at the end."""
        raw: Any = await within(self._idle_seconds, context.read())
        return None if raw is grpc.aio.EOF else cast("bytes", raw)

    async def _align(
        self, context: Context, run: str, request: AlignRequest
    ) -> AlignAnswer | AlignPending:
        waiting: Progress | None = None

        def progress(now: Progress) -> None:
            nonlocal waiting
            before = waiting.skipped if waiting is not None else []
            waiting = now.model_copy(update={"skipped": [*before, *now.skipped]})

        async def tell() -> None:
            nonlocal waiting
            if waiting is not None:
                now, waiting = waiting, None
                message = pb.AlignStreamResponse()
                message.progress.MergeFromString(to_bytes(now, pb.Progress))
                await context.write(message.SerializeToString())

        work = asyncio.ensure_future(self._application.align(run, request, progress))
        try:
            while not (await asyncio.wait({work}, timeout=PROGRESS_SECONDS))[0]:
                await tell()
            if waiting is not None and waiting.skipped:  # too quick for the clock
                await tell()
            return work.result()
        finally:
            if not work.done():  # the client is gone
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)


async def drain(context: Context) -> None:
    """Throw away what a refused client still sends, for a short while.

    A call that ends while its client is writing fails at the client's writing side, and several
    client libraries then report an internal error in place of the status they were sent.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while cast("Any", await context.read()) is not grpc.aio.EOF:
                pass


async def head_weights(application: Application, raw: bytes, context: Context) -> None:
    """A version's file in chunks; the version and the file's hash go ahead of it.

    Raises:
        Problem: of the message's form or of the use case.
    """
    request = decode(pb.GetHeadWeightsRequest, raw)
    require_run(request.run)
    head, data = await application.head_weights(request.run, request.head)
    await context.send_initial_metadata((("r2m-head", str(head.head)), ("r2m-sha256", head.sha256)))
    view = memoryview(data)
    for start in range(0, len(data), MAX_CHUNK_BYTES):
        piece = pb.GetHeadWeightsResponse(data=bytes(view[start : start + MAX_CHUNK_BYTES]))
        await context.write(piece.SerializeToString())
