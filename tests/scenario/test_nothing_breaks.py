"""What clients do to a server, all at once, in a process of its own: it answers, and does not grow.

R2M_TEST_SOAK_SECONDS in the environment asks for rounds until that many are over, as `make fuzz`
does; without it one follows the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import struct
import threading
import time

import numpy as np
import pytest
from support.processes import serving

from r2m_client import Client, R2MError, Sample

SECONDS = float(os.environ.get("R2M_TEST_SOAK_SECONDS", "0"))
WIDTH = 512
TINY, GIANTS, TOKENS = 10_000, 10, 6000
"""A giant is 6 MB of hidden states, a few times the chunk, and as many tokens as a long rollout."""
METHOD = {"width": 8}
GROWTH = 96 << 20
"""What the resident memory may differ by between two rounds: allocators keep some of their peak."""


@pytest.fixture(scope="module")
def server(reward_model, tmp_path_factory):
    state = tmp_path_factory.mktemp("nothing-breaks")
    with serving(reward_model, state, "--max-body-bytes", str(32 << 20)) as one:
        with Client(one.http) as client:
            client.create_run("policy", policy_hidden_size=WIDTH, method=METHOD)
            client.create_run("plain", feedback="none", method=METHOD)
        yield one
        code, output = one.end()
        assert code == 0
        assert "Traceback" not in output, output[-3000:]


@pytest.fixture(scope="module")
def giants():
    """They share one array: nothing is copied before it is on its way."""
    states = np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float16)
    return [Sample(f"giant-{n}", "How long?", f"{n} times.", states) for n in range(GIANTS)]


@pytest.fixture(scope="module")
def tiny():
    return [Sample(f"tiny-{n}", "Hi", f"{n % 97}") for n in range(TINY)]


def resident(server):
    """The server's memory, bytes."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


def streamed(client, batch, run):
    with client.score_stream(run=run) as stream:
        sender = threading.Thread(target=lambda: ([stream.send(s) for s in batch], stream.finish()))
        sender.start()
        found = {score.id: score.reward for score in stream}
        sender.join()
    return [found[one.id] for one in batch]


def ten_thousand_tiny_ones(server, tiny, giants):
    with Client(server.http) as http, Client(server.grpc) as grpc:
        ways = [
            http.score(tiny, run="plain").rewards,
            grpc.score(tiny, run="plain").rewards,
            streamed(grpc, tiny, "plain"),
        ]
    assert all(None not in rewards for rewards in ways)
    assert ways[0] == pytest.approx(ways[1], abs=1e-5)
    assert ways[0] == pytest.approx(ways[2], abs=1e-5)


def ten_giants(server, tiny, giants):
    with Client(server.http) as http, Client(server.grpc) as grpc:
        over_http = [http.score([one], run="policy").rewards[0] for one in giants]
        over_grpc = [grpc.score([one], run="policy").rewards[0] for one in giants]
        assert over_http == pytest.approx(over_grpc, abs=1e-5)
        assert over_http == pytest.approx(streamed(grpc, giants, "policy"), abs=1e-5)
    # All in one body are more than it may have: refused before it is read.
    with Client(server.http, retries=0) as client, pytest.raises(R2MError) as caught:
        client.score(giants, run="policy")
    assert caught.value.code == "too_large"


def address(server):
    host, port = server.http.removeprefix("http://").split(":")
    return host, int(port)


def head_of(length, kind="application/json", path="/v1/runs/plain/score"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: r2m\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def clients_that_vanish(server, tiny, giants):
    """In the head, in the middle of a body, and with the answer on its way."""
    body = json.dumps({
        "samples": [{"id": str(n), "prompt": "Hi", "response": "you"} for n in range(500)]
    }).encode()  # fmt: skip
    for sent in (
        b"POST /v1/runs/plain/score HT",
        head_of(50 << 20)[:-2],
        head_of(50 << 20) + b'{"samples": [' + b" " * (1 << 20),
        head_of(len(body)) + body[: len(body) // 2],
        head_of(len(body)) + body,
    ) * 4:
        with socket.create_connection(address(server), timeout=10) as one:
            one.sendall(sent)
            # A reset instead of a goodbye.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(4):
        with Client(server.grpc) as client, contextlib.suppress(R2MError):
            stream = client.score_stream(run="policy").__enter__()
            stream.send(giants[0])
            stream._link._answers.cancel()
            stream._link.close()


def headers_that_lie(server, tiny, giants):
    """Sizes that are not so: each is refused, and its connection is no longer needed."""
    request = json.dumps({"samples": []})
    header = json.dumps({"__metadata__": {"request": request}}).encode()
    bodies = [
        struct.pack("<Q", 1 << 62) + header,
        struct.pack("<Q", len(header) + 7) + header,
        struct.pack("<Q", len(header)) + header[:-5],
        struct.pack("<Q", 8)
        + json.dumps(
            {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
        ).encode()[:8],
        b"",
        b"\0" * 7,
    ]
    for body in bodies:
        status, answer = exchanged(server, head_of(len(body), "application/x-safetensors") + body)
        assert status == 400, answer
        assert answer["error"]["message"]
    for head, status in (
        (b"POST /v1/runs/plain/score HTTP/1.1\r\nHost: r2m\r\nContent-Type: application/json"
         b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (head_of(1 << 50), 413),
        (head_of(2).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"{}", 415),
    ):  # fmt: skip
        found, answer = exchanged(server, head)
        assert found == status, answer


def heads_without_end(server, tiny, giants):
    """Headers and no body: the connection is over long before they are as long as a body may be."""
    for line in (b"x: " + b"a" * (1 << 16), b"x: a\r\n" * 10_000):
        sent = 0
        with (
            socket.create_connection(address(server), timeout=10) as one,
            contextlib.suppress(ConnectionError),
        ):
            one.sendall(b"GET /v1/server HTTP/1.1\r\nHost: r2m\r\n")
            while sent < 32 << 20:
                one.sendall(line)
                sent += len(line)
        assert sent < 32 << 20


def exchanged(server, request):
    """Status and JSON of an answer to bytes."""
    with socket.create_connection(address(server), timeout=10) as one:
        one.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += one.recv(65536) or pytest.fail(f"no answer to {request[:80]!r}")
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        (length,) = [int(one[15:]) for one in lines if one.startswith("content-length:")]
        while len(body) < length:
            body += one.recv(65536) or pytest.fail("the answer was cut short")
    return int(lines[0].split()[1]), json.loads(body)


def slow_ones(server, tiny, giants):
    """A body in drops, and an answer that nobody takes for a while: others are served meanwhile."""
    body = json.dumps({
        "samples": [{"id": str(n), "prompt": "Hi", "response": "you"} for n in range(4000)]
    }).encode()  # fmt: skip
    with (
        socket.create_connection(address(server), timeout=20) as dripping,
        socket.create_connection(address(server), timeout=20) as reluctant,
        Client(server.grpc) as quick,
    ):
        dripping.sendall(head_of(200) + b'{"samples": [')
        reluctant.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reluctant.sendall(head_of(len(body)) + body)
        for _ in range(10):
            dripping.sendall(b" ")
            assert quick.score(tiny[:5], run="plain").rewards[0] is not None
            time.sleep(0.02)
        taken = 0
        while taken < 1 << 17:
            taken += len(reluctant.recv(4096))


SCENES = [
    ten_thousand_tiny_ones,
    ten_giants,
    clients_that_vanish,
    headers_that_lie,
    heads_without_end,
    slow_ones,
]


def test_nothing_breaks_it_and_nothing_grows(server, tiny, giants):
    sizes = []
    end = time.monotonic() + SECONDS
    while len(sizes) < 2 or time.monotonic() < end:
        turn = len(sizes)
        for scene in SCENES:
            # The first round only fills caches and pools: a part of it is enough.
            scene(server, tiny if turn else tiny[:500], giants)
            with Client(server.http, retries=0) as client:
                assert client.score(tiny[:1], run="plain").rewards[0] is not None
        sizes.append(resident(server))
        print(f"round {turn}: {sizes[-1] >> 20} MiB", flush=True)
    assert sizes[-1] - sizes[min(1, len(sizes) - 2)] < GROWTH, [size >> 20 for size in sizes]
