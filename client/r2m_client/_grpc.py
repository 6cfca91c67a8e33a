"""The gRPC transports: they move bytes; what the bytes are is in _grpc_wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from r2m_client._async_score_stream import AsyncScoreStream
from r2m_client._errors import ProtocolError
from r2m_client._grpc_streams import AioDuplex, BlockingAnswers, Peer
from r2m_client._grpc_wire import (
    AlignUpload,
    Download,
    ScoreStreamWire,
    Unary,
    grpc_request,
)
from r2m_client._score_stream import ScoreStream
from r2m_client._tls import Trust
from r2m_client._tracing import calling
from r2m_client._transport import user_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from r2m_client._calls import Call
    from r2m_client._results import ScoreResult
    from r2m_client._transport import Address, Headers, Opening, Traffic


def _options(address: Address) -> list[tuple[str, Any]]:
    return [
        # gRPC reads the proxy variables by itself, for this machine's own addresses, too.
        ("grpc.enable_http_proxy", int(address.proxy is not None)),
        # What may be sent is the server's to say; what comes back was asked for.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A long align sends nothing for a while: keep gateways from dropping the connection, and
        # notice a dead peer. More often than this, servers would take it for abuse.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC refuses calls while it waits to reconnect, up to two minutes by default; retries
        # should find a restarted server sooner.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.primary_user_agent", user_agent()),
    ]


Metadata = tuple[tuple[str, str], ...]


def _metadata(headers: Headers) -> Metadata:
    return tuple((key.lower(), value) for key, value in headers.items())


def _credentials(address: Address, trust: Trust) -> grpc.ChannelCredentials | None:
    """None for plain text. Raises ValueError for files that cannot be used."""
    return grpc.ssl_channel_credentials(*trust.bytes()) if address.secure else None


def _found(answer: object | None, where: str) -> object:
    if answer is None:
        raise ProtocolError(f"{where} ended the stream without an answer")
    return answer


class GrpcTransport:
    """Blocking gRPC.

    Args:
        address: where to.
        headers: metadata of every call.
        traffic: counts the messages' bytes.
        trust: for TLS; None: as the system has it.
    """

    def __init__(
        self, address: Address, headers: Headers, traffic: Traffic, trust: Trust | None = None
    ) -> None:
        self._where = address.where
        self._metadata = _metadata(headers)
        self._traffic = traffic
        self._peer = Peer(address, trust or Trust(), self._metadata, traffic)
        self._credentials = _credentials(address, self._peer.trust)
        if self._credentials is not None:
            self._channel = grpc.secure_channel(
                address.target, self._credentials, _options(address)
            )
        else:
            self._channel = grpc.insecure_channel(address.target, _options(address))

    def prepare(self, call: Call[Any]) -> Callable[[float], object]:
        """Serialize; see `Transport.prepare`."""
        request = grpc_request(call)

        def attempt(timeout: float) -> object:
            with calling(call.rpc, self._peer.address.shown) as context:
                return self._send(request, timeout, self._metadata + tuple(context.items()))

        return attempt

    def score_stream(
        self, call: Call[ScoreResult], opening: Opening[Callable[[float], None]]
    ) -> ScoreStream:
        """See `Transport.score_stream`."""
        wire = ScoreStreamWire(call, opening.wire_dtype)

        return ScoreStream(
            wire,
            lambda messages: BlockingAnswers(self._channel, wire.path, messages, self._peer),
            timeout=opening.timeout,
            attempts=opening.attempts,
            sleep=opening.sleep,
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _send(
        self, request: Unary | Download | AlignUpload, timeout: float, metadata: Metadata
    ) -> object:
        try:
            match request:
                case Unary():
                    return self._unary(request, timeout, metadata)
                case Download():
                    return self._download(request, timeout, metadata)
                case AlignUpload():
                    return self._align(request, timeout, metadata)
        except grpc.RpcError as error:
            raise self._peer.failure(error) from error

    def _unary(self, request: Unary, timeout: float, metadata: Metadata) -> object:
        self._traffic.count_sent(len(request.payload))
        answer: bytes = self._channel.unary_unary(request.path)(
            request.payload, timeout=timeout, metadata=metadata
        )
        self._traffic.count_received(len(answer))
        return request.read(answer)

    def _download(self, request: Download, timeout: float, metadata: Metadata) -> bytes:
        self._traffic.count_sent(len(request.payload))
        chunks: list[bytes] = []
        for payload in self._channel.unary_stream(request.path)(
            request.payload, timeout=timeout, metadata=metadata
        ):
            self._traffic.count_received(len(payload))
            chunks.append(request.read(payload))
        return b"".join(chunks)

    def _align(self, request: AlignUpload, timeout: float, metadata: Metadata) -> object:
        stream = self._channel.stream_stream(request.path)(
            self._counted(request), timeout=timeout, metadata=metadata
        )
        answer = None
        try:
            for payload in stream:
                self._traffic.count_received(len(payload))
                answer = request.read(payload) or answer
        finally:  # where the caller's progress raised; a stream that has ended takes no notice
            stream.cancel()
        return _found(answer, self._where)

    def _counted(self, request: AlignUpload) -> Iterator[bytes]:
        for payload in request.payloads():
            self._traffic.count_sent(len(payload))
            yield payload


class AsyncGrpcTransport:
    """gRPC for asyncio, in the first loop it is used in; arguments as for `GrpcTransport`."""

    def __init__(
        self, address: Address, headers: Headers, traffic: Traffic, trust: Trust | None = None
    ) -> None:
        self._address = address
        self._where = address.where
        self._metadata = _metadata(headers)
        self._traffic = traffic
        self._peer = Peer(address, trust or Trust(), self._metadata, traffic)
        self._credentials = _credentials(address, self._peer.trust)
        self._opened: grpc.aio.Channel | None = None

    def prepare(self, call: Call[Any]) -> Callable[[float], Awaitable[object]]:
        """Serialize; see `Transport.prepare`."""
        request = grpc_request(call)

        async def attempt(timeout: float) -> object:
            with calling(call.rpc, self._peer.address.shown) as context:
                return await self._send(request, timeout, self._metadata + tuple(context.items()))

        return attempt

    def score_stream(
        self, call: Call[ScoreResult], opening: Opening[Callable[[float], Awaitable[None]]]
    ) -> AsyncScoreStream:
        """See `AsyncTransport.score_stream`."""
        wire = ScoreStreamWire(call, opening.wire_dtype)
        return AsyncScoreStream(
            wire,
            lambda: AioDuplex(self._channel, wire.path, self._peer),
            timeout=opening.timeout,
            attempts=opening.attempts,
            sleep=opening.sleep,
        )

    async def close(self) -> None:
        """Close the channel."""
        if self._opened is not None:
            await self._opened.close()

    @property
    def _channel(self) -> grpc.aio.Channel:
        # Not in the constructor: a channel takes the running loop, and clients are made before.
        if self._opened is None:
            address = self._address
            if self._credentials is not None:
                self._opened = grpc.aio.secure_channel(
                    address.target, self._credentials, _options(address)
                )
            else:
                self._opened = grpc.aio.insecure_channel(address.target, _options(address))
        return self._opened

    async def _send(
        self, request: Unary | Download | AlignUpload, timeout: float, metadata: Metadata
    ) -> object:
        try:
            match request:
                case Unary():
                    return await self._unary(request, timeout, metadata)
                case Download():
                    return await self._download(request, timeout, metadata)
                case AlignUpload():
                    return await self._align(request, timeout, metadata)
        except grpc.aio.AioRpcError as error:
            raise await self._peer.failure_later(error) from error

    async def _unary(self, request: Unary, timeout: float, metadata: Metadata) -> object:
        self._traffic.count_sent(len(request.payload))
        answer: bytes = await self._channel.unary_unary(request.path)(
            request.payload, timeout=timeout, metadata=metadata
        )
        self._traffic.count_received(len(answer))
        return request.read(answer)

    async def _download(self, request: Download, timeout: float, metadata: Metadata) -> bytes:
        self._traffic.count_sent(len(request.payload))
        chunks: list[bytes] = []
        async for payload in self._channel.unary_stream(request.path)(
            request.payload, timeout=timeout, metadata=metadata
        ):
            self._traffic.count_received(len(payload))
            chunks.append(request.read(payload))
        return b"".join(chunks)

    async def _align(self, request: AlignUpload, timeout: float, metadata: Metadata) -> object:
        stream = self._channel.stream_stream(request.path)(
            self._counted(request), timeout=timeout, metadata=metadata
        )
        answer = None
        try:
            async for payload in stream:
                self._traffic.count_received(len(payload))
                answer = request.read(payload) or answer
        finally:
            stream.cancel()
        return _found(answer, self._where)

    async def _counted(self, request: AlignUpload) -> AsyncIterator[bytes]:
        for payload in request.payloads():
            self._traffic.count_sent(len(payload))
            yield payload
