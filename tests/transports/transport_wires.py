"""Both transports around an application, and what a client sees of their errors."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

import grpc
import grpc.aio
import httpx
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from transport_fakes import FakeApplication

from r2m.v1 import r2m_pb2 as pb
from r2m.v1 import r2m_pb2_grpc
from r2m_service.application import contract
from r2m_service.transports.grpc.health import Health
from r2m_service.transports.grpc.server import build_grpc
from r2m_service.transports.http.app import build_app

SERVICE = "r2m.v1.RewardModelService"


@dataclasses.dataclass
class Failure:
    """An error as a client sees it, over whichever transport."""

    code: str
    message: str
    field: str | None
    retryable: bool
    status: Any
    pause: float | None


def http_failure(response: httpx.Response) -> Failure:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error = contract.ErrorOut.model_validate(body["error"])
    pause = response.headers.get("retry-after")
    return Failure(
        error.code,
        error.message,
        error.field,
        error.retryable,
        response.status_code,
        None if pause is None else float(pause),
    )


def grpc_failure(error: grpc.aio.AioRpcError) -> Failure:
    trailing = dict(error.trailing_metadata() or ())
    raw = trailing["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status = Status.FromString(raw)
    info, pause = ErrorInfo(), None
    assert status.details[0].Unpack(info)
    assert info.domain == "r2m"
    assert status.message == error.details()
    assert status.code == error.code().value[0]
    for one in status.details[1:]:
        retry = RetryInfo()
        assert one.Unpack(retry)
        pause = float(retry.retry_delay.seconds)
    return Failure(
        info.reason,
        status.message,
        info.metadata.get("field"),
        {"true": True, "false": False}[info.metadata["retryable"]],
        error.code(),
        pause,
    )


class Wires:
    """Both transports of one application, as clients see them."""

    def __init__(self, application: Any, http: httpx.AsyncClient, channel: grpc.aio.Channel):
        self.application = application
        self.http = http
        self.channel = channel
        self.address = ""
        self.stub: Any = r2m_pb2_grpc.RewardModelServiceStub(channel)

    async def over_http(self, method: str, path: str, **given: Any) -> Failure | Any:
        response = await self.http.request(method, path, **given)
        return response.json() if response.is_success else http_failure(response)

    async def over_grpc(self, method: str, message: Any) -> Failure | Any:
        try:
            return await getattr(self.stub, method)(message, timeout=10)
        except grpc.aio.AioRpcError as error:
            return grpc_failure(error)

    async def raw(self, method: str, data: bytes) -> Failure | bytes:
        try:
            return await self.channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=10)
        except grpc.aio.AioRpcError as error:
            return grpc_failure(error)

    async def stream(self, *parts: Any) -> tuple[list[Any], Failure | None]:
        """AlignStream with these messages (or raw bytes): what came back, and how it ended."""
        call = self.channel.stream_stream(f"/{SERVICE}/AlignStream")(timeout=10)
        answers = []
        try:
            for part in parts:
                await call.write(part if isinstance(part, bytes) else part.SerializeToString())
            await call.done_writing()
        except asyncio.InvalidStateError:
            pass  # the server has ended the call already
        except grpc.aio.AioRpcError as error:
            return [], grpc_failure(error)
        try:
            async for raw in call:
                answers += [pb.AlignStreamResponse.FromString(raw)]
        except grpc.aio.AioRpcError as error:
            return answers, grpc_failure(error)
        return answers, None


@contextlib.asynccontextmanager
async def serving(application: Any = None, **settings: Any):
    """Both transports around an application: HTTP without a socket, gRPC over loopback."""
    application = application or FakeApplication()
    http_settings = {
        "max_body_bytes": settings.get("max_bytes", 1 << 20),
        "budget": settings.get("budget"),
        "requests": settings.get("requests"),
        "idle_seconds": settings.get("idle_seconds", 5.0),
        "gate": settings.get("gate"),
        "compat_run": settings.get("compat_run"),
        "scrape": settings.get("scrape"),
    }
    app = build_app(application, **http_settings)
    server = build_grpc(
        application,
        max_message_bytes=settings.get("max_bytes", 4 << 20),
        max_stream_bytes=settings.get("max_stream_bytes"),
        max_stream_samples=settings.get("max_stream_samples", 1024),
        budget=settings.get("budget"),
        requests=settings.get("requests"),
        idle_seconds=settings.get("idle_seconds", 5.0),
        health=settings.get("health") or Health(),
        gate=settings.get("gate"),
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = httpx.ASGITransport(app=app)
    try:
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            wires = Wires(application, client, channel)
            wires.address = f"127.0.0.1:{port}"
            yield wires
    finally:
        await server.stop(None)
