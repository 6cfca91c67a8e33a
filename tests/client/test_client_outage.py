"""Servers that start late, stop and come back, or are not there; and proxies on the way."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from client_servers import GrpcServer, HttpServer, Refuse, Script
from support.processes import free_port

from r2m.errors import Code, Problem
from r2m_client import AsyncClient, Client, ConnectError, ProtocolError, Sample
from r2m_client._grpc_wire import grpc_failure
from r2m_client._proxy import proxy_of
from r2m_client._transport import parse_url

KINDS = {"http": HttpServer, "grpc": GrpcServer}
LATE_SECONDS = 3.0
"""Longer than five retries with short pauses take."""


def runs(url, **settings):
    with Client(url, **settings) as client:
        return client.runs()[0].run


def runs_async(url, **settings):
    async def call():
        async with AsyncClient(url, **settings) as client:
            return (await client.runs())[0].run

    return asyncio.run(call())


def rollback(url):
    with Client(url) as client:
        return client.rollback("tldr", to=0).run


def stream(url):
    with Client(url) as client, client.score_stream(run="tldr") as scores:
        scores.send(Sample("a", "p", "r"))
        scores.finish()
        return [score.reward for score in scores]


def stream_async(url):
    async def call():
        async with AsyncClient(url) as client, client.score_stream(run="tldr") as scores:
            await scores.send(Sample("a", "p", "r"))
            await scores.finish()
            return [score.reward async for score in scores]

    return asyncio.run(call())


def start(kind, port):
    server = KINDS[kind](port)
    server.play(Script())
    return server


def test_calls_wait_for_a_server_that_starts_late():
    """Every kind of call with the client's default settings, a rollback included."""
    ports = {kind: free_port() for kind in KINDS}
    urls = {kind: f"{kind}://127.0.0.1:{port}" for kind, port in ports.items()}
    calls = [(call, urls[kind]) for call in (runs, runs_async, rollback) for kind in KINDS]
    streams = [(call, urls["grpc"]) for call in (stream, stream_async)]
    with ThreadPoolExecutor(len(calls) + len(streams)) as pool:
        answers = [pool.submit(call, url) for call, url in calls]
        scores = [pool.submit(call, url) for call, url in streams]
        time.sleep(LATE_SECONDS)
        assert not any(one.done() for one in (*answers, *scores))
        servers = [start(kind, port) for kind, port in ports.items()]
        try:
            assert [one.result() for one in answers] == ["tldr"] * len(calls)
            assert [one.result() for one in scores] == [[0.5]] * len(streams)
        finally:
            for server in servers:
                server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_stops_between_two_calls_and_comes_back(kind):
    port = free_port()
    first = start(kind, port)
    with Client(f"{kind}://127.0.0.1:{port}") as client:
        assert client.runs()
        first.stop()
        again = []
        timer = threading.Timer(2.0, lambda: again.append(start(kind, port)))
        timer.start()
        try:
            assert client.rollback("tldr", to=0).run == "tldr"
        finally:
            timer.join()
            again[0].stop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [runs, runs_async])
def test_nothing_listens(kind, call):
    """The whole timeout is used, and no more; the error names the address, time and tries."""
    url = f"{kind}://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        call(url, timeout=2)
    assert 1.5 < time.monotonic() - started < 4
    words = str(caught.value)
    assert words.startswith(f"no server answers at {url}: ")
    assert "refused" in words.lower()
    assert "is it running?" in words
    assert re.search(r" \(\d+ tries in (1\.\d|2(\.\d)?) s\)$", words)
    assert not caught.value.maybe_sent


def test_a_server_that_is_not_ready_until_the_timeout(http_server, script):
    script.steps += [Refuse(Problem(Code.NOT_READY, "the model is loading"))] * 1000
    started = time.monotonic()
    with pytest.raises(
        Exception, match=r"not_ready: the model is loading \(\d+ tries in [01](\.\d)? s\)"
    ):
        runs(http_server.url, timeout=1)
    assert 0.7 < time.monotonic() - started < 3
    assert len(script.seen) > 3


def test_the_log_says_that_a_call_waits(http_server, script, caplog):
    caplog.set_level(logging.WARNING, logger="r2m_client")
    script.steps += [Refuse(Problem(Code.OVERLOADED, "full"), retry_after=1.0)] * 2
    assert runs(http_server.url, timeout=10) == "tldr"
    first, last = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"overloaded: full \(retrying for \d+ s at most\)", first)
    assert last.startswith("an answer came after ")


# ------------------------------------------------------------------ proxies


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that answers everything with 502 and notes what it was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(1 << 16).split(b"\r\n")[0].decode())
                    connection.sendall(
                        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n"
                        b"Connection: close\r\n\r\nproxy"
                    )

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://user:secret@127.0.0.1:{listening.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("http_proxy", address)
        yield address, asked
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("call", [runs, runs_async])
def test_an_error_names_the_proxy(proxy, call):
    _, asked = proxy
    with pytest.raises(ProtocolError) as caught:
        call("http://reward.test:8080", timeout=0.5)
    assert "http://reward.test:8080 through the proxy http://127.0.0.1:" in str(caught.value)
    assert "(http_proxy)" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert asked[0] == "GET http://reward.test:8080/v1/runs HTTP/1.1"


@pytest.mark.parametrize("call", [runs, runs_async])
def test_an_error_names_the_proxy_of_grpc(proxy, call):
    _, asked = proxy
    with pytest.raises(
        ConnectError, match=r"reward.test:50051 through the proxy .* \(http_proxy\)"
    ):
        call("grpc://reward.test:50051", timeout=0.5)
    assert asked[0].startswith("CONNECT reward.test:50051")


@pytest.mark.parametrize("call", [runs, runs_async])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_loopback_address_goes_through_no_proxy(proxy, server, script, call, host):
    assert call(server.url.replace("127.0.0.1", host)) == "tldr"
    assert proxy[1] == []


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://h:1", {"HTTP_PROXY": "http://p:3"}, "http://p:3 (HTTP_PROXY)"),
        ("http://h:1", {"http_proxy": "p:3"}, "http://p:3 (http_proxy)"),
        ("https://h", {"ALL_PROXY": "http://p:3"}, "http://p:3 (ALL_PROXY)"),
        ("https://h", {"http_proxy": "http://p:3"}, None),
        ("http://h:1", {"http_proxy": "http://p:3", "no_proxy": "x,h"}, None),
        ("http://a.h:1", {"http_proxy": "http://p:3", "NO_PROXY": "h"}, None),
        ("http://h:1", {"http_proxy": "http://p:3", "no_proxy": "h:1"}, None),
        ("http://h:1", {"http_proxy": "http://p:3", "no_proxy": "*"}, None),
        ("http://ah:1", {"http_proxy": "http://p:3", "no_proxy": "h,"}, "http://p:3 (http_proxy)"),
        ("http://10.1.2.3:1", {"http_proxy": "http://p:3", "no_proxy": "x, 10.0.0.0/8"}, None),
        ("http://[::1]:1", {"http_proxy": "http://p:3"}, None),
        ("http://127.9.9.9:1", {"http_proxy": "http://p:3"}, None),
        ("grpc://h:1", {"HTTP_PROXY": "http://p:3"}, None),  # gRPC reads lower case alone
        ("grpc://h:1", {"all_proxy": "http://p:3"}, None),
        ("grpcs://h:1", {"https_proxy": "http://p:3"}, "http://p:3 (https_proxy)"),
        ("grpc://h:1", {"grpc_proxy": "http://p:3", "no_proxy": "h"}, None),
        (
            "grpc://h:1",
            {"grpc_proxy": "http://p:3", "no_grpc_proxy": "x", "no_proxy": "h"},
            "http://p:3 (grpc_proxy)",
        ),
    ],
)
def test_which_proxy(monkeypatch, url, environment, expected):
    for name in ("http", "https", "all", "grpc", "no", "no_grpc"):
        for spelt in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.delenv(spelt, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(parse_url(url))
    assert (None if found is None else str(found)) == expected


class Unavailable:
    def __init__(self, words):
        self._words = words

    def code(self):
        import grpc

        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return self._words

    def trailing_metadata(self):
        return None


@pytest.mark.parametrize(
    ("words", "maybe_sent"),
    [
        ("failed to connect to all addresses; last error: … Connection refused (111)", False),
        ("DNS resolution failed for h:1: …", False),
        ("Socket closed", True),
        ("recvmsg:Connection reset by peer", True),
    ],
)
def test_what_grpc_has_not_sent(words, maybe_sent):
    error = grpc_failure(Unavailable(words), "grpc://h:1")
    assert isinstance(error, ConnectError)
    assert error.maybe_sent is maybe_sent
