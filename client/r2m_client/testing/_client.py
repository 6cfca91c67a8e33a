"""The real clients, with a function call in place of the network."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Protocol

from r2m_client._async_client import AsyncClient
from r2m_client._async_score_stream import AsyncScoreStream
from r2m_client._client import Client
from r2m_client._safetensors import json_bytes, safetensors_pieces
from r2m_client._score_stream import ScoreStream
from r2m_client._settings import Settings
from r2m_client.testing._stream import FakeAnswers, FakeDuplex, FakeStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from r2m_client._calls import Call
    from r2m_client._results import ScoreResult
    from r2m_client._retry import Retry
    from r2m_client._samples import WireDtype
    from r2m_client._transport import Opening, Traffic

URL = "fake://"


class Answering(Protocol):
    """What a transport needs of a fake."""

    def answer(self, call: Call[Any], body: bytes) -> object:
        """One attempt of a call. Raises R2MError."""
        ...


class Wire:
    """One call at a time, to and fro as the bytes that HTTP would carry."""

    def __init__(self, server: Answering, traffic: Traffic) -> None:
        self._server = server
        self._traffic = traffic
        self.closed = False

    def pack(self, call: Call[Any]) -> Callable[[], object]:
        """Serialize, so that what cannot be serialized fails as it does with a server.

        Raises:
            ValueError: the call cannot be serialized.
        """
        body = b"" if call.body is None else json_bytes(call.body)
        size = len(body)
        if call.tensors:
            size = sum(len(piece) for piece in safetensors_pieces(call.body, call.tensors))
        return lambda: self._send(call, body, size)

    def _send(self, call: Call[Any], body: bytes, size: int) -> object:
        if self.closed:
            raise RuntimeError("the client was closed")
        self._traffic.count_sent(size)
        answer = self._server.answer(call, body)
        if isinstance(answer, bytes):
            self._traffic.count_received(len(answer))
            return answer
        # Through JSON: what the test keeps of an answer is not the fake's own state.
        encoded = json_bytes(answer)
        self._traffic.count_received(len(encoded))
        return json.loads(encoded)


class FakeTransport:
    """Implements `Transport`."""

    def __init__(self, server: Answering, traffic: Traffic) -> None:
        self._wire = Wire(server, traffic)

    def prepare(self, call: Call[Any]) -> Callable[[float], object]:
        """See `Transport.prepare`."""
        send = self._wire.pack(call)
        return lambda timeout: send()

    def score_stream(
        self, call: Call[ScoreResult], opening: Opening[Callable[[float], None]]
    ) -> ScoreStream:
        """See `Transport.score_stream`."""

        def connect(messages: Iterator[bytes]) -> FakeAnswers:
            return FakeAnswers(stream, messages)

        stream = FakeStream(call, opening.wire_dtype, lambda one: self._wire.pack(one)())
        return ScoreStream(
            stream,
            connect,
            timeout=opening.timeout,
            attempts=opening.attempts,
            sleep=opening.sleep,
        )

    def close(self) -> None:
        """Take no more calls."""
        self._wire.closed = True


class AsyncFakeTransport:
    """Implements `AsyncTransport`."""

    def __init__(self, server: Answering, traffic: Traffic) -> None:
        self._wire = Wire(server, traffic)

    def prepare(self, call: Call[Any]) -> Callable[[float], Awaitable[object]]:
        """See `AsyncTransport.prepare`."""
        send = self._wire.pack(call)

        async def attempt(timeout: float) -> object:
            await asyncio.sleep(0)  # other tasks get their turn, as they would with a network
            return send()

        return attempt

    def score_stream(
        self, call: Call[ScoreResult], opening: Opening[Callable[[float], Awaitable[None]]]
    ) -> AsyncScoreStream:
        """See `AsyncTransport.score_stream`."""
        stream = FakeStream(call, opening.wire_dtype, lambda one: self._wire.pack(one)())
        return AsyncScoreStream(
            stream,
            lambda: FakeDuplex(stream),
            timeout=opening.timeout,
            attempts=opening.attempts,
            sleep=opening.sleep,
        )

    async def close(self) -> None:
        """Take no more calls."""
        self._wire.closed = True


class SkippingClock:
    """A clock on which a pause passes at once, so that the timeout bounds retries as ever."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def __call__(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic() + self._skipped

    def sleep(self, seconds: float) -> None:
        """Skip a pause."""
        self._skipped += seconds

    async def sleep_async(self, seconds: float) -> None:
        """Skip a pause; other tasks get their turn."""
        self.sleep(seconds)
        await asyncio.sleep(0)


class FakeClient(Client):
    """`Client` over a fake. Pauses before retries are not waited for."""

    def __init__(
        self, server: Answering, timeout: float, retries: int | Retry | None, wire_dtype: WireDtype
    ) -> None:
        # Not Client's own __init__: it would open a network transport for the URL.
        Settings.__init__(self, URL, timeout, retries, wire_dtype)
        self._clock = clock = SkippingClock()
        self._sleep = clock.sleep
        self._transport = FakeTransport(server, self._traffic)


class AsyncFakeClient(AsyncClient):
    """`AsyncClient` over a fake. Pauses before retries are not waited for."""

    def __init__(
        self, server: Answering, timeout: float, retries: int | Retry | None, wire_dtype: WireDtype
    ) -> None:
        Settings.__init__(self, URL, timeout, retries, wire_dtype)
        self._clock = clock = SkippingClock()
        self._sleep = clock.sleep_async
        self._transport = AsyncFakeTransport(server, self._traffic)
