"""The HTTP transports. What a request and an answer are is shared; the two classes only move them.

httpx has timeouts for single operations, not for a call. So every operation gets the time that is
left, and the clock is looked at between the pieces of a body, both ways.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import httpx

from r2m_client._errors import ConnectError, DeadlineError, ProtocolError, R2MError, server_error
from r2m_client._safetensors import CONTENT_TYPE, json_bytes, safetensors_pieces
from r2m_client._tls import Trust, explained, explained_later, handshake_failure
from r2m_client._tracing import calling
from r2m_client._transport import no_server, no_stream, user_agent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from r2m_client._calls import Call
    from r2m_client._tracing import Context
    from r2m_client._transport import Address, Headers, Traffic

CONNECT_SECONDS = 10.0
"""A connection that is not there by then is tried anew while the call has time left."""

PASSING = frozenset({429, 502, 503, 504})
EXCERPT = 200


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A serialized call: `pieces` are its body, in order."""

    verb: str
    path: str
    headers: dict[str, str]
    pieces: list[bytes | memoryview]
    download: bool


def http_request(call: Call[Any]) -> HttpRequest:
    """Serialize a call: JSON, or safetensors where hidden states go along.

    Raises:
        ValueError: the call cannot be serialized.
    """
    pieces: list[bytes | memoryview] = []
    headers: dict[str, str] = {}
    if call.tensors:
        pieces = safetensors_pieces(call.body, call.tensors)
        headers["Content-Type"] = CONTENT_TYPE
    elif call.body is not None:
        pieces = [json_bytes(call.body)]
        headers["Content-Type"] = "application/json"
    if pieces:
        # Stated, not chunked: the server reserves the memory before it reads the body.
        headers["Content-Length"] = str(sum(len(piece) for piece in pieces))
    return HttpRequest(call.verb, call.path, headers, pieces, call.download)


def http_answer(response: httpx.Response, body: bytes, where: str, *, download: bool) -> object:
    """What a complete response from `where` says.

    Raises:
        R2MError: the server's error, or a ProtocolError for an answer of something else.
    """
    status = response.status_code
    if download and status == 200:
        return body
    try:
        parsed: object = json.loads(body)
    except ValueError:  # not JSON, or not UTF-8
        parsed = None
    if 200 <= status < 300 and isinstance(parsed, dict):
        return cast("dict[str, object]", parsed)
    wait = retry_after(response.headers.get("retry-after"))
    error = cast("dict[str, object]", parsed).get("error") if isinstance(parsed, dict) else None
    if status >= 400 and isinstance(error, Mapping) and "code" in error:
        raise server_error(
            cast("Mapping[str, object]", error),
            status=status,
            retry_after=wait,
            request_id=response.headers.get("x-request-id"),
        )
    what = response.headers.get("content-type", "no content type")
    start = " ".join(body[: 4 * EXCERPT].decode(errors="replace").split())[:EXCERPT]
    raise ProtocolError(
        f"HTTP {status} with {what} from {where} is no answer of an R2M server: {start!r}",
        status=status,
        passing=status in PASSING,
        retry_after=wait,
    )


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None for anything else."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        at = parsedate_to_datetime(value)
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # no date, or one without a time zone
        return None


def http_failure(error: httpx.RequestError, where: str) -> R2MError:
    """What a failed exchange means for the caller."""
    said = str(error) or type(error).__name__
    untrusted = handshake_failure(error, where)
    if untrusted is not None:
        return untrusted
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return no_server(where, _reason(error) or said)
    if isinstance(error, httpx.TimeoutException):
        return late(where)
    if isinstance(error, httpx.TransportError):
        return ConnectError(f"the connection to {where} broke: {said}")
    return ProtocolError(f"{where} sent an answer that cannot be decoded: {said}")


def _reason(error: BaseException | None) -> str | None:
    """The operating system's words for a connection that failed, from below httpx's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            # Of a name that is not resolved the number is negative, and the words are its own.
            return os.strerror(error.errno) if error.errno > 0 else error.strerror
        if isinstance(error, BaseExceptionGroup):  # one for each address of a name
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__
    return None


def late(where: str) -> DeadlineError:
    """The call's time is over."""
    return DeadlineError(f"no complete answer from {where} within the call's timeout")


def _options(address: Address, headers: Headers) -> dict[str, Any]:
    return {
        "base_url": address.url,
        "headers": {"User-Agent": user_agent(), **headers},
        "follow_redirects": False,
        "trust_env": False,  # the network below has what the environment says
    }


def _network(address: Address, trust: Trust) -> dict[str, Any]:
    # Reading the CA certificates takes 20 ms, and without TLS nothing asks for them; an empty
    # context trusts nobody.
    verify: bool | ssl.SSLContext = True
    if not address.secure:
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    elif not trust.default:
        verify = trust.context()
    return {
        "verify": verify,
        "proxy": None if address.proxy is None else address.proxy.url,
        # A client belongs to a trainer with many workers: no limit of its own on connections.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32),
    }


def _timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


class HttpTransport:
    """Blocking HTTP.

    Args:
        address: where to.
        headers: for every request.
        traffic: counts the bodies' bytes.
        trust: for TLS; None: as the system has it.
        network: replaces the network, in tests.
    """

    def __init__(
        self,
        address: Address,
        headers: Headers,
        traffic: Traffic,
        trust: Trust | None = None,
        *,
        network: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = address
        self._trust = trust or Trust()
        self._where = address.where
        self._traffic = traffic
        network = network or httpx.HTTPTransport(**_network(address, self._trust))
        self._http = httpx.Client(**_options(address, headers), transport=network)

    def prepare(self, call: Call[Any]) -> Callable[[float], object]:
        """Serialize; see `Transport.prepare`."""
        request = http_request(call)

        def attempt(timeout: float) -> object:
            with calling(call.rpc, self._address.shown) as context:
                return self._send(request, timeout, context)

        return attempt

    def score_stream(self, call: object, opening: object) -> NoReturn:
        """See `Transport.score_stream`."""
        raise no_stream(self._address.shown)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _send(self, request: HttpRequest, timeout: float, context: Context) -> object:
        deadline = time.monotonic() + timeout
        try:
            with self._http.stream(
                request.verb,
                request.path,
                content=self._outgoing(request, deadline) if request.pieces else None,
                headers=request.headers | context,
                timeout=_timeouts(timeout),
            ) as response:
                body = b"".join(self._incoming(response, deadline))
                self._traffic.count_received(response.num_bytes_downloaded)
        except httpx.RequestError as error:
            found = http_failure(error, self._where)
            raise explained(found, self._address, self._trust) from error
        return http_answer(response, body, self._where, download=request.download)

    def _incoming(self, response: httpx.Response, deadline: float) -> Iterator[bytes]:
        for piece in response.iter_bytes():
            if time.monotonic() > deadline:
                raise late(self._where)
            yield piece

    def _outgoing(self, request: HttpRequest, deadline: float) -> Iterator[bytes]:
        for piece in request.pieces:
            if time.monotonic() > deadline:
                raise late(self._where)
            self._traffic.count_sent(len(piece))
            yield cast("bytes", piece)  # h11 and the socket take any buffer


class AsyncHttpTransport:
    """HTTP for asyncio; arguments as for `HttpTransport`."""

    def __init__(
        self,
        address: Address,
        headers: Headers,
        traffic: Traffic,
        trust: Trust | None = None,
        *,
        network: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = address
        self._trust = trust or Trust()
        self._where = address.where
        self._traffic = traffic
        network = network or httpx.AsyncHTTPTransport(**_network(address, self._trust))
        self._http = httpx.AsyncClient(**_options(address, headers), transport=network)

    def prepare(self, call: Call[Any]) -> Callable[[float], Awaitable[object]]:
        """Serialize; see `Transport.prepare`."""
        request = http_request(call)

        async def attempt(timeout: float) -> object:
            with calling(call.rpc, self._address.shown) as context:
                return await self._send(request, timeout, context)

        return attempt

    def score_stream(self, call: object, opening: object) -> NoReturn:
        """See `Transport.score_stream`."""
        raise no_stream(self._address.shown)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _send(self, request: HttpRequest, timeout: float, context: Context) -> object:
        try:
            async with (
                asyncio.timeout(timeout),
                self._http.stream(
                    request.verb,
                    request.path,
                    content=self._outgoing(request) if request.pieces else None,
                    headers=request.headers | context,
                    timeout=_timeouts(timeout),
                ) as response,
            ):
                body = await response.aread()
                self._traffic.count_received(response.num_bytes_downloaded)
        except httpx.RequestError as error:
            found = http_failure(error, self._where)
            raise await explained_later(found, self._address, self._trust) from error
        except TimeoutError:
            raise late(self._where) from None
        return http_answer(response, body, self._where, download=request.download)

    async def _outgoing(self, request: HttpRequest) -> AsyncIterator[bytes]:
        for piece in request.pieces:
            self._traffic.count_sent(len(piece))
            yield cast("bytes", piece)
