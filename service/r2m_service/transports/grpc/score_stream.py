"""ScoreStream: rollouts go in as they finish generating, rewards come out as they are ready."""

from __future__ import annotations

from typing import Any, cast

import grpc.aio

from r2m.errors import Code, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.application.timings import timed
from r2m_service.transports.access import require_run
from r2m_service.transports.grpc.errors import Context
from r2m_service.transports.grpc.messages import decode, to_bytes, to_value
from r2m_service.transports.grpc.methods import score_request
from r2m_service.transports.grpc.score_flow import OpenStream
from r2m_service.transports.grpc.score_uploads import Bounds
from r2m_service.transports.grpc.streams import drain
from r2m_service.transports.grpc.trailers import tell
from r2m_service.transports.interface import Application, Scoring
from r2m_service.transports.limits import while_ready, within


class ScoreStream:
    """Scores samples one by one, all by one head.

    Args:
        application: the use cases.
        bounds: of every stream.
    """

    def __init__(self, application: Application, bounds: Bounds) -> None:
        self._application = application
        self._bounds = bounds

    async def __call__(self, context: Context) -> None:
        """Serve one stream to its end.

        Raises:
            Problem: of the stream's form, of the head it asks for, or not_ready while draining.
        """
        try:
            scoring = await self._open(context)
        except Problem as problem:
            if problem.code is not Code.DEADLINE_EXCEEDED:
                await drain(context)
            raise
        part = pb.ScoreStreamResponse()
        part.opened.MergeFromString(to_bytes(scoring.opened, pb.ScoreResponse))
        await context.write(part.SerializeToString())
        with timed() as spent:
            await OpenStream(self._application, scoring, self._bounds, context).run()
        tell(context, spent)

    async def _open(self, context: Context) -> Scoring:
        async with while_ready(self._application.require_ready):
            raw: Any = await within(self._bounds.idle_seconds, context.read())
        first = None if raw is grpc.aio.EOF else decode(pb.ScoreStreamRequest, cast("bytes", raw))
        if first is None or first.WhichOneof("part") != "open":
            raise Problem(
                Code.INVALID_REQUEST, "the stream's first message must be `open`", field="open"
            )
        if first.open.samples:
            raise Problem(
                Code.INVALID_REQUEST,
                "open.samples must be empty: on a stream each is a message of its own",
                field="open.samples",
            )
        require_run(first.open.run)
        run, request = score_request(to_value(first.open))
        return await self._application.open_scoring(run, request)
