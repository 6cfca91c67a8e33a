"""The gRPC server: raw bytes in and out of the handlers, health and reflection beside them."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection

from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.application.tracing_port import NO_TRACING, Tracing
from r2m_service.transports.access import Gate
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.grpc.door import Door
from r2m_service.transports.grpc.errors import Context, or_abort
from r2m_service.transports.grpc.health import SERVICE, Health
from r2m_service.transports.grpc.methods import UNARY
from r2m_service.transports.grpc.score_stream import ScoreStream
from r2m_service.transports.grpc.score_uploads import Bounds
from r2m_service.transports.grpc.streams import AlignStream, head_weights
from r2m_service.transports.grpc.unary import UnaryCalls
from r2m_service.transports.interface import Application
from r2m_service.transports.limits import ByteBudget, RequestLimit

LOOKAHEAD_BYTES = 1 << 18
"""Of one call, before a handler reads. A message that is being read comes without such stops."""


def build_grpc(
    application: Application,
    *,
    max_message_bytes: int,
    max_stream_bytes: int | None = None,
    max_stream_samples: int = 1024,
    budget: ByteBudget | None = None,
    requests: RequestLimit | None = None,
    idle_seconds: float = 60.0,
    max_calls: int | None = None,
    health: Health | None = None,
    buffers: BufferPool | None = None,
    gate: Gate | None = None,
    metrics: Metrics = NO_METRICS,
    tracing: Tracing = NO_TRACING,
) -> grpc.aio.Server:
    """The gRPC server, without an address and not started. Call it inside the event loop.

    Args:
        application: the use cases.
        max_message_bytes: the largest message taken; so much is held while one is read.
        max_stream_bytes: the most tensor bytes of one AlignStream, or of one sample of a
            ScoreStream; None: as one message.
        max_stream_samples: samples of one ScoreStream in flight, answers unread included.
        budget: bytes in flight, shared with the other transport; None: no common bound.
        idle_seconds: a stream that pauses longer is given up.
        requests: unary calls in hand, shared with the other transport; None: no bound.
        max_calls: calls at once, streams too; gRPC itself refuses more (RESOURCE_EXHAUSTED,
            without details).
        buffers: where the memory of streamed tensors is from; None: new memory each time.
        health: the health service; pass your own to set it to NOT_SERVING later.
        gate: who is let in; None: everybody.
        metrics: hears of each call, and of each sample of a ScoreStream.
        tracing: makes a span of each.
    """
    held = budget or ByteBudget()
    memory = buffers or BufferPool()
    server = grpc.aio.server(
        interceptors=(
            Door(gate or Gate(), held, max_message_bytes, metrics=metrics, tracing=tracing),
        ),
        maximum_concurrent_rpcs=max_calls,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Otherwise a second server on the same port starts without a word.
            ("grpc.so_reuseport", 0),
            # What clients may send before anybody asks for it. Left to itself gRPC takes megabytes
            # a call on a fast network, which nobody counts.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
        ],
    )
    max_bytes = max_message_bytes if max_stream_bytes is None else max_stream_bytes
    align = AlignStream(
        application, max_bytes=max_bytes, budget=held, idle_seconds=idle_seconds, buffers=memory
    )
    score = ScoreStream(
        application,
        Bounds(
            max_bytes=max_bytes,
            max_samples=max_stream_samples,
            budget=held,
            idle_seconds=idle_seconds,
            buffers=memory,
            metrics=metrics,
        ),
    )

    async def align_stream(_: Any, context: Context) -> None:
        await or_abort(context, align(context), name="AlignStream", metrics=metrics)

    async def score_stream(_: Any, context: Context) -> None:
        await or_abort(context, score(context), name="ScoreStream", metrics=metrics)

    async def get_head_weights(raw: bytes, context: Context) -> None:
        work = head_weights(application, raw, context)
        await or_abort(context, work, name="GetHeadWeights", metrics=metrics)

    # No (de)serializers: bytes that are no message must be answered by us, not as INTERNAL.
    unary = UnaryCalls(
        application,
        max_bytes=max_message_bytes,
        budget=held,
        requests=requests or RequestLimit(),
        idle_seconds=idle_seconds,
        metrics=metrics,
    )
    # On the wire a unary call is a stream of one message. As a stream we read it ourselves, and
    # not before there is room for it.
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.stream_unary_rpc_method_handler(unary.handler(name, method))
        for name, method in UNARY.items()
    }
    handlers["AlignStream"] = grpc.stream_stream_rpc_method_handler(align_stream)
    handlers["ScoreStream"] = grpc.stream_stream_rpc_method_handler(score_stream)
    handlers["GetHeadWeights"] = grpc.unary_stream_rpc_method_handler(get_head_weights)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(health or Health(), server)
    reflection.enable_server_reflection((SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
    return server
