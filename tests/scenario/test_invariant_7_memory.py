"""Invariant 7: memory is bounded by configuration, whatever clients send.

Many clients send ten times the bytes that may be in flight, all at once, over both transports, to
a process of its own whose resident memory is watched.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.processes import serving

from r2m_client import Client, R2MError, Sample

MIB = 1 << 20
INFLIGHT = 32 * MIB
CLIENTS, WIDTH, TOKENS = 64, 512, 5120
"""Each brings 5 MiB: together ten times what may be in flight."""
BOUND = 3 * INFLIGHT
"""What the process may grow by. A byte in flight is there as the body, and once more while it is
decoded or computed; the rest is gRPC's windows (256 KiB a call) and what the allocator keeps."""
LIMITS = (
    "--inflight-bytes", str(INFLIGHT), "--max-body-bytes", str(8 * MIB),
    "--grpc-message-bytes", str(8 * MIB), "--batch-bytes", str(INFLIGHT // 4),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(reward_model, tmp_path_factory):
    with serving(reward_model, tmp_path_factory.mktemp("memory"), *LIMITS) as one:
        with Client(one.http) as client:
            client.create_run("r", policy_hidden_size=WIDTH, method={"width": 8})
        yield one
        code, output = one.end()
        assert code == 0
        assert "Traceback" not in output, output[-3000:]


@pytest.fixture(scope="module")
def states():
    return np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float16)


def resident(server):
    """The server's memory now, bytes."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


@contextlib.contextmanager
def watched(server):
    """The most memory that it has within, as the one number of a list."""
    peak, over = [resident(server)], threading.Event()

    def watch():
        while not over.wait(0.005):
            peak[0] = max(peak[0], resident(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def outcome(client, sample):
    try:
        answer = client.score([sample], run="r")
    except R2MError as error:
        return error.code
    assert answer.rewards[0] is not None, answer
    return "scored"


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_ten_times_the_allowed_bytes_at_once(server, states, transport):
    url = server.http if transport == "http" else server.grpc
    everybody = threading.Barrier(CLIENTS)

    def one(number):
        with Client(url, retries=0, timeout=60) as client:
            everybody.wait(30)
            return outcome(client, Sample(f"s{number}", "How long?", f"{number}.", states))

    with Client(url) as client:  # what is there once and for all is there now
        assert outcome(client, Sample("first", "How long?", "So long.", states)) == "scored"
    before = resident(server)
    with watched(server) as peak, ThreadPoolExecutor(CLIENTS) as pool:
        found = Counter(pool.map(one, range(CLIENTS)))
    assert set(found) <= {"scored", "overloaded"}, found
    assert found["scored"] >= 1
    grown = peak[0] - before
    print(f"{transport}: {dict(found)}, {grown / MIB:.0f} MiB more")
    assert grown <= BOUND, f"{grown / MIB:.0f} MiB more, {BOUND // MIB} were allowed"
    with Client(url) as client:
        assert outcome(client, Sample("last", "How long?", "So long.", states)) == "scored"


def held(server, size):
    """A request that has announced its bytes and sends none."""
    host, port = server.http.removeprefix("http://").split(":")
    one = socket.create_connection((host, int(port)))
    one.sendall(
        b"POST /v1/score HTTP/1.1\r\nHost: r2m\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % size
    )
    return one


def test_who_finds_no_room_is_refused_and_streams_wait(server, states):
    sample = Sample("s", "How long?", "So long.", states)
    with Client(server.http, retries=0) as http, Client(server.grpc, retries=0) as grpc:
        hoarders = [held(server, 7 * MIB) for _ in range(4)]
        try:
            deadline = time.monotonic() + 30
            while outcome(http, sample) != "overloaded":  # until all four have announced theirs
                assert time.monotonic() < deadline
            assert outcome(grpc, sample) == "overloaded"
            with grpc.score_stream(run="r") as stream:
                stream.send(sample)
                stream.finish()
                hoarders.pop().close()
                (answer,) = list(stream)
            assert answer.reward is not None
        finally:
            for one in hoarders:
                one.close()
