from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from client_servers import GrpcServer, HttpServer, Script

from r2m_client import AsyncClient, Client
from r2m_client._transport import parse_url


class Caller:
    """A client of either kind, called the same way; it waits for nothing but notes the pauses."""

    def __init__(self, url: str, *, is_async: bool, **settings: Any) -> None:
        self.pauses: list[float] = []
        self._runner = asyncio.Runner() if is_async else None
        if is_async:
            self.client: Any = AsyncClient(url, **settings)
            self.client._sleep = self._sleep_async
        else:
            self.client = Client(url, **settings)
            self.client._sleep = self.pauses.append

    async def _sleep_async(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def __call__(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        if self._runner is None:
            return getattr(self.client, method)(*args, **kwargs)

        async def call() -> Any:
            return await getattr(self.client, method)(*args, **kwargs)

        return self._runner.run(call())

    def replace_network(self, network: Any) -> None:
        """Put an httpx transport in place of the network."""
        old, address = self.client._transport, parse_url(self.client.url)
        self.client._transport = type(old)(address, {}, self.client._traffic, network=network)
        if self._runner is None:
            old.close()
        else:
            self._runner.run(old.close())

    def close(self) -> None:
        if self._runner is None:
            self.client.close()
        else:
            self._runner.run(self.client.close())
            self._runner.close()


@pytest.fixture(scope="session")
def running() -> Iterator[dict[str, Any]]:
    servers = {"http": HttpServer(), "grpc": GrpcServer()}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def script(running: dict[str, Any]) -> Script:
    """What both servers answer in this test, and what they saw."""
    script = Script()
    for server in running.values():
        server.play(script)
    return script


@pytest.fixture(params=["http", "grpc"])
def server(request: pytest.FixtureRequest, running: dict[str, Any], script: Script) -> Any:
    return running[request.param]


@pytest.fixture
def http_server(running: dict[str, Any], script: Script) -> HttpServer:
    return running["http"]


@pytest.fixture
def grpc_server(running: dict[str, Any], script: Script) -> GrpcServer:
    return running["grpc"]


@pytest.fixture
def open_caller() -> Iterator[Any]:
    opened: list[Caller] = []

    def open_one(url: str, *, is_async: bool = False, **settings: Any) -> Caller:
        opened.append(Caller(url, is_async=is_async, **settings))
        return opened[-1]

    yield open_one
    for caller in opened:
        caller.close()


@pytest.fixture(params=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return request.param == "async"


@pytest.fixture
def caller(server: Any, open_caller: Any, is_async: bool) -> Caller:
    """A client of each kind, connected to the script over each transport: four in all."""
    return open_caller(server.url, is_async=is_async)
