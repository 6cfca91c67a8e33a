"""The addresses that a server listens on, and the HTTP server behind one."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Generator

import grpc
import grpc.aio
import uvicorn
from starlette.types import ASGIApp

from r2m_service.access.tls import Tls

KEEP_ALIVE_SECONDS = 75
"""How long a connection may be idle. Longer than clients keep theirs (httpx: 5 s, as uvicorn's own
default): otherwise a call goes out on a connection that is being closed, and is lost."""

MAX_HEAD_BYTES = 64 << 10
"""An HTTP request's line and headers, which are read before anybody can ask how long they are."""


class ListenError(OSError):
    """Why an address cannot be listened on, in one line that names the way out."""


class HttpServer(uvicorn.Server):
    """uvicorn, without its own signal handling: both transports end together.

    Args:
        app: what answers.
        drain_seconds: how long it finishes what it has at the end.
        tls: None: plain text.
    """

    def __init__(self, app: ASGIApp, *, drain_seconds: float, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            # Not what is installed: httptools, its other choice, bounds no head.
            http="h11",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
        # Its own options for files would read them again, and with a password prompt.
        config.load()
        config.ssl = tls
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield


def bind(address: str, flag: str) -> socket.socket:
    """A socket at HOST:PORT, which does not listen yet.

    Args:
        flag: the setting, for the error.

    Raises:
        ListenError: it is in use, or no address of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off; without, every answer on a
    # kept connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
    except OSError as error:
        listener.close()
        raise ListenError(
            f"cannot listen on {address} ({error.strerror}): choose another with {flag}"
        ) from error
    return listener


def add_grpc_port(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Give a gRPC server its address; its port is the answer.

    Raises:
        ListenError: it is in use, or the certificate is none for gRPC.
    """
    try:
        if tls is None:
            return server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials(
            [(tls.key, tls.cert)], tls.client_ca, require_client_auth=tls.client_ca is not None
        )
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ListenError(f"cannot listen for gRPC on {address}: {error}") from error


def shown(listener: socket.socket) -> str:
    """A socket's HOST:PORT."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"
