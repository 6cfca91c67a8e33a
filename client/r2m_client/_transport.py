"""The seam between a client and the network, and the choice that a URL makes.

A transport prepares a call once, which serializes it, and hands back the function that sends it;
every attempt of the call sends the same bytes. httpx and grpc are imported here, when the first
client needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from r2m_client._errors import ConnectError
from r2m_client._key import with_key

if TYPE_CHECKING:
    from os import PathLike

    from r2m_client._async_score_stream import AsyncScoreStream
    from r2m_client._calls import Call
    from r2m_client._proxy import Proxy
    from r2m_client._results import ScoreResult
    from r2m_client._retry import Attempts
    from r2m_client._samples import WireDtype
    from r2m_client._score_stream import ScoreStream
    from r2m_client._tls import CertFiles, Trust

Headers = Mapping[str, str]
Sleep = TypeVar("Sleep")


@dataclass(frozen=True, slots=True)
class Opening(Generic[Sleep]):
    """What a client lends to a stream: its settings, and how it repeats.

    Attributes:
        wire_dtype: what float32 and wider hidden states are sent as.
        timeout: seconds for the opening, and of silence later.
        attempts: those of one opening.
        sleep: between them.
    """

    wire_dtype: WireDtype
    timeout: float
    attempts: Callable[[], Attempts]
    sleep: Sleep


class Transport(Protocol):
    """Sends calls and waits for their answers. Safe to use from several threads."""

    def prepare(self, call: Call[Any]) -> Callable[[float], object]:
        """Serialize a call.

        Returns:
            A function that sends it once, given the seconds it may take, and returns the answer's
            JSON, or its bytes for a download. It raises an R2MError.

        Raises:
            ValueError: the call cannot be serialized.
        """
        ...

    def score_stream(
        self, call: Call[ScoreResult], opening: Opening[Callable[[float], None]]
    ) -> ScoreStream:
        """A stream that answers as the call would; ValueError where there is none."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


class AsyncTransport(Protocol):
    """The same for one event loop."""

    def prepare(self, call: Call[Any]) -> Callable[[float], Awaitable[object]]:
        """As `Transport.prepare`; the function is awaited."""
        ...

    def score_stream(
        self, call: Call[ScoreResult], opening: Opening[Callable[[float], Awaitable[None]]]
    ) -> AsyncScoreStream:
        """As `Transport.score_stream`."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


class Traffic:
    """Payload bytes of requests and answers, as serialized; every attempt counts.

    Headers, framing and compression are not in them. gRPC sends a stream's requests from a thread
    of its own, hence the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = 0
        self.received = 0

    def count_sent(self, size: int) -> None:
        """Add to the requests' bytes."""
        with self._lock:
            self.sent += size

    def count_received(self, size: int) -> None:
        """Add to the answers' bytes."""
        with self._lock:
            self.received += size


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        url: as given.
        grpc: gRPC or HTTP.
        secure: with TLS.
        target: host:port.
        shown: the URL without a user or password.
        proxy: on the way there.
    """

    url: str
    grpc: bool
    secure: bool
    target: str
    shown: str
    proxy: Proxy | None = None

    @property
    def where(self) -> str:
        """The server for messages: the URL without a user or password, and the proxy."""
        return self.shown if self.proxy is None else f"{self.shown} through the proxy {self.proxy}"


SCHEMES = {
    "http": (False, False),
    "https": (False, True),
    "grpc": (True, False),
    "grpcs": (True, True),
}


def parse_url(url: str) -> Address:
    """Read a server's URL.

    Raises:
        ValueError: saying which forms there are.
    """
    forms = "give http://HOST:PORT, https://HOST, grpc://HOST:PORT or grpcs://HOST:PORT"
    try:
        parts = urlsplit(url)
        known, host, port = SCHEMES.get(parts.scheme), parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no server's URL ({error}): {forms}") from None
    if known is None or not host:
        raise ValueError(f"{url!r} is no server's URL: {forms}")
    grpc, secure = known
    bracketed = f"[{host}]" if ":" in host else host
    target = bracketed if port is None else f"{bracketed}:{port}"
    shown = f"{parts.scheme}://{target}"
    if parts.query or parts.fragment:
        raise ValueError(f"{shown}: a server's URL has no query and no fragment: {forms}")
    if grpc:
        if port is None:
            raise ValueError(f"{shown} names no port: {forms}")
        if parts.path not in ("", "/") or "@" in parts.netloc:
            raise ValueError(f"{shown}: a gRPC URL is a host and a port alone: {forms}")
    return Address(url, grpc, secure, target, shown)


def open_transport(
    url: str,
    headers: Headers,
    traffic: Traffic,
    *,
    api_key: str | None = None,
    ca: str | PathLike[str] | None = None,
    cert: CertFiles | None = None,
) -> Transport:
    """The blocking transport for a URL.

    Raises:
        ValueError: for a URL of another form, or a key or file that cannot be used.
    """
    address = _address(url)
    headers = with_key(headers, api_key)
    trust = _trust(address, ca, cert)
    if address.grpc:
        from r2m_client._grpc import GrpcTransport

        return GrpcTransport(address, headers, traffic, trust)
    from r2m_client._http import HttpTransport

    return HttpTransport(address, headers, traffic, trust)


def open_async_transport(
    url: str,
    headers: Headers,
    traffic: Traffic,
    *,
    api_key: str | None = None,
    ca: str | PathLike[str] | None = None,
    cert: CertFiles | None = None,
) -> AsyncTransport:
    """The asyncio transport for a URL.

    Raises:
        ValueError: for a URL of another form, or a key or file that cannot be used.
    """
    address = _address(url)
    headers = with_key(headers, api_key)
    trust = _trust(address, ca, cert)
    if address.grpc:
        from r2m_client._grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address, headers, traffic, trust)
    from r2m_client._http import AsyncHttpTransport

    return AsyncHttpTransport(address, headers, traffic, trust)


def _address(url: str) -> Address:
    """A server's URL, with the proxy that the environment puts before it. Raises ValueError."""
    from r2m_client._proxy import proxy_of  # with urllib, which importing us shall not load

    address = parse_url(url)
    return replace(address, proxy=proxy_of(address))


def no_server(where: str, reason: str) -> ConnectError:
    """The error of an attempt that came to no connection: its request was not sent."""
    return ConnectError(f"no server answers at {where}: {reason}; is it running?", maybe_sent=False)


def _trust(address: Address, ca: str | PathLike[str] | None, cert: CertFiles | None) -> Trust:
    from r2m_client._tls import find_trust  # with Python's TLS, which importing us shall not load

    return find_trust(ca, cert, secure=address.secure)


def no_stream(where: str) -> ValueError:
    """Why there is no score stream over HTTP."""
    return ValueError(
        f"{where} is an HTTP URL, and score streams need gRPC: give the client the server's "
        "grpc:// address, or call score with the samples that are ready"
    )


def user_agent() -> str:
    """This client's name and version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"r2m-client/{version('r2m-serve')}"
    except PackageNotFoundError:  # a source tree that was put on the path
        return "r2m-client"
