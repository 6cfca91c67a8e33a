"""What is repeated, when, how often, and what never is."""

import socket
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
from client_servers import RUN, Refuse

from r2m.errors import TABLE, Code, Problem
from r2m_client import (
    AliasMoved,
    Client,
    ConnectError,
    DeadlineError,
    Group,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    Retry,
    Sample,
    ServerDeadline,
    Unavailable,
)
from r2m_client._errors import server_error
from r2m_client._retry import Attempts

BUSY = Refuse(Problem(Code.OVERLOADED, "full"))
BROKEN = None


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def attempts(clock, *, timeout=60.0, repeatable=True, draw=lambda low, high: high, **retry):
    return Attempts(Retry(**retry), timeout, repeatable=repeatable, clock=clock, draw=draw)


# ------------------------------------------------------------------ the rule, without any I/O


def test_pauses_double_up_to_a_cap_and_the_draw_decides():
    tried = attempts(Clock(), retries=6, base=0.5, cap=3.0)
    error = ConnectError("gone")
    assert [tried.pause_after(error) for _ in range(6)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    with pytest.raises(ConnectError) as caught:
        tried.pause_after(error)
    assert caught.value is error
    assert str(error) == "gone (7 tries in 0 s)"
    tried = attempts(Clock(), base=0.5, draw=lambda low, high: low)
    assert [tried.pause_after(error) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_jitter_is_full():
    pauses = [Attempts(Retry(base=1.0), 60.0).pause_after(ConnectError("x")) for _ in range(300)]
    assert 0 <= min(pauses) < 0.1
    assert 0.9 < max(pauses) < 1.0


def test_what_the_server_asks_for_is_added():
    tried = attempts(Clock(), base=0.5)
    asked = server_error({"code": "overloaded", "message": "m"}, retry_after=7.0)
    assert tried.pause_after(asked) == 7.5
    assert tried.pause_after(ProtocolError("page", passing=True, retry_after=2.0)) == 3.0


def test_thousands_of_repeats_do_not_overflow():
    tried = attempts(Clock(), timeout=1e9, retries=3000, base=1.0, cap=5.0)
    assert [tried.pause_after(ConnectError("x")) for _ in range(3000)][-1] == 5.0


def test_the_deadline_bounds_pauses_and_attempts():
    clock = Clock()
    tried = attempts(clock, timeout=10.0, base=4.0, cap=8.0)
    assert tried.remaining() == 10.0
    clock.now += 5.0
    assert tried.remaining() == 5.0
    assert tried.pause_after(ConnectError("x")) == 4.0
    clock.now += 4.0
    # The pause is cut, so that the last attempt has time left.
    assert tried.pause_after(ConnectError("x")) == pytest.approx(0.9)
    clock.now += 0.9
    with pytest.raises(ConnectError, match=r"last words \(3 tries in 9.9 s\)"):
        tried.pause_after(ConnectError("last words"))
    clock.now += 1.0
    with pytest.raises(DeadlineError, match="last words"):
        tried.remaining()


def test_a_last_attempt_that_is_late_tells_of_the_failures_before_it():
    clock = Clock()
    tried = attempts(clock, timeout=10.0)
    tried.pause_after(ConnectError("refused"))
    clock.now += 10.0
    with pytest.raises(DeadlineError, match=r"late \(2 tries in 10 s; the last failure: refused\)"):
        tried.pause_after(DeadlineError("late"))


def test_a_call_is_retried_until_its_timeout_by_default():
    clock, pauses = Clock(), []
    tried = Attempts(Retry(), 60.0, clock=clock, draw=lambda low, high: high)

    def refuse():
        while True:
            pauses.append(tried.pause_after(ConnectError("refused")))
            clock.now += pauses[-1]

    with pytest.raises(ConnectError, match=r"35 tries in 59.9 s"):
        refuse()
    assert max(pauses) == 2.0
    assert sum(pauses) == pytest.approx(59.9)


@pytest.mark.parametrize("code", list(TABLE))
@pytest.mark.parametrize("repeatable", [True, False])
def test_which_codes_are_repeated(code, repeatable):
    tried = attempts(Clock(), repeatable=repeatable)
    error = server_error({"code": code, "message": "m"})
    refused = code in (Code.OVERLOADED, Code.NOT_READY, Code.ALIGN_CONFLICT)
    if TABLE[code].retryable and (repeatable or refused):
        assert tried.pause_after(error) > 0
    else:
        with pytest.raises(type(error)):
            tried.pause_after(error)
        assert error.tried == ""


@pytest.mark.parametrize(
    ("error", "always", "if_repeatable"),
    [
        (ConnectError("refused", maybe_sent=False), True, True),
        (ConnectError("reset"), False, True),
        (ProtocolError("too many", status=429, passing=True), True, True),
        (ProtocolError("bad gateway", status=502, passing=True), False, True),
        (ProtocolError("page", status=200), False, False),
        (DeadlineError("late"), False, False),
    ],
)
def test_which_failures_are_repeated(error, always, if_repeatable):
    for repeatable, expected in ((False, always), (True, if_repeatable)):
        tried = attempts(Clock(), repeatable=repeatable)
        if expected:
            assert tried.pause_after(error) > 0
        else:
            with pytest.raises(type(error)):
                tried.pause_after(error)


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"base": -0.1}, {"cap": float("nan")}])
def test_retry_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="negative"):
        Retry(**wrong)


# ------------------------------------------------------------------ over the transports


def test_overload_is_waited_out_with_the_same_bytes(caller, script):
    script.steps += [Refuse(BUSY.problem, retry_after=3.0), Refuse(BUSY.problem)]
    states = np.arange(8, dtype=np.float32).reshape(2, 4)
    samples = (Sample(name, "p", "r", states) for name in "ab")  # a generator serves one attempt
    result = caller("score", samples, run="tldr")
    assert result.rewards == [0.5, 1.5]
    assert len(script.seen) == 3
    assert script.seen[0].payloads == script.seen[1].payloads == script.seen[2].payloads
    assert len(caller.pauses) == 2
    assert 3.0 <= caller.pauses[0] <= 3.1  # first backoff: up to 0.1 s
    assert 0.0 <= caller.pauses[1] <= 0.2
    assert caller.client.bytes_sent == 3 * len(script.seen[0].payloads[0])


def test_a_call_is_serialized_once(caller, script, monkeypatch):
    prepared = []
    transport = caller.client._transport
    prepare = transport.prepare
    monkeypatch.setattr(transport, "prepare", lambda call: prepared.append(call) or prepare(call))
    script.steps += [BUSY, BUSY]
    caller("runs")
    assert len(script.seen) == 3
    assert len(prepared) == 1


def test_a_server_that_shuts_down_cancels(grpc_server, script, open_caller, is_async):
    script.steps += [(grpc.StatusCode.CANCELLED, "CANCELLED")]
    assert open_caller(grpc_server.url, is_async=is_async)("runs")
    assert len(script.seen) == 2


def test_a_stream_is_repeated_with_the_same_bytes(grpc_server, script, open_caller, is_async):
    caller = open_caller(grpc_server.url, is_async=is_async)
    script.steps += [BUSY, BROKEN]
    states = np.ones((600, 2048), np.float32)
    result = caller("align", "tldr", step=1, groups=[Group("g", [Sample("a", "p", "r", states)])])
    assert result.candidate == 1
    assert [seen.streamed for seen in script.seen] == [True] * 3
    assert script.seen[0].payloads == script.seen[1].payloads == script.seen[2].payloads
    assert len(script.seen[0].tensors["a"]) == 600 * 2048 * 2
    assert caller.client.bytes_sent == sum(len(p) for s in script.seen for p in s.payloads)


def test_repeats_are_counted(server, script, open_caller, is_async):
    script.steps += [BUSY] * 10
    caller = open_caller(server.url, is_async=is_async, retries=5)
    with pytest.raises(Overloaded, match="6 tries in"):
        caller("runs")
    assert len(script.seen) == 6
    assert len(caller.pauses) == 5


def test_no_retries(server, script, open_caller, is_async):
    script.steps += [BUSY]
    with pytest.raises(Overloaded):
        open_caller(server.url, is_async=is_async, retries=0)("runs")
    assert len(script.seen) == 1


def test_refusals_that_will_not_change_are_not_repeated(caller, script):
    script.steps += [Refuse(Problem(Code.INVALID_REQUEST, "no"))]
    with pytest.raises(InvalidRequest):
        caller("runs")
    assert len(script.seen) == 1
    assert caller.pauses == []


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create_run", {"run": "tldr"}),
        ("archive_run", {"name": "tldr"}),
        ("score", {"samples": [Sample("a", "p", "r")], "run": "tldr"}),
        ("align", {"run": "tldr", "step": 1, "groups": []}),
        ("set_alias", {"run": "tldr", "alias": "best", "head": 1}),
        ("head_weights", {"run": "tldr"}),
    ],
)
def test_a_broken_connection_is_survived_where_a_repeat_is_harmless(
    caller, script, method, arguments
):
    script.steps += [BROKEN, BROKEN]
    caller(method, **arguments)
    assert len(script.seen) == 3


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("rollback", {"run": "tldr", "to": 0}),
        ("set_alias", {"run": "tldr", "alias": "best", "head": 1, "expect": 0}),
    ],
)
def test_what_may_have_been_done_is_not_done_twice(caller, script, method, arguments):
    script.steps += [BROKEN]
    with pytest.raises(ConnectError) as caught:
        caller(method, **arguments)
    assert caught.value.maybe_sent
    assert len(script.seen) == 1
    script.steps += [Refuse(Problem(Code.STORAGE_FAILED, "commit failed"))]
    with pytest.raises(Unavailable):
        caller(method, **arguments)
    assert len(script.seen) == 2
    script.steps += [BUSY, Refuse(Problem(Code.NOT_READY, "starting"))]  # nothing was done
    caller(method, **arguments)
    assert len(script.seen) == 5
    script.steps += [Refuse(Problem(Code.ALIAS_MOVED, "it moved"))]
    with pytest.raises(AliasMoved):
        caller(method, **arguments)
    assert len(script.seen) == 6


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_gateways_page_is_waited_out(http_server, script, open_caller, is_async, status):
    caller = open_caller(http_server.url, is_async=is_async, retries=5)
    script.steps += [(status, b"<h1>Bad Gateway</h1>", {"Retry-After": "4"})]
    assert caller("runs")[0].run == "tldr"
    assert 4.0 <= caller.pauses[0] <= 4.1
    script.steps += [(status, b"<h1>Bad Gateway</h1>", {})] * 6
    with pytest.raises(ProtocolError, match="Bad Gateway"):
        caller("runs")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_listens(open_caller, is_async, scheme):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{probe.getsockname()[1]}"
        caller = open_caller(url, is_async=is_async, retries=2)
        with pytest.raises(ConnectError, match=url):
            caller("runs")
    assert len(caller.pauses) == 2
    assert caller.client.bytes_received == 0


def test_a_rollback_waits_for_a_server_that_is_not_there_yet(open_caller, is_async):
    """Nothing can have been done where no connection came about."""
    made = []

    def answer(request):
        made.append(request)
        if len(made) < 3:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, json=RUN)

    caller = open_caller("http://h:1/base", is_async=is_async)
    caller.replace_network(httpx.MockTransport(answer))
    assert caller("rollback", "tldr", to=0).run == "tldr"
    assert [str(request.url) for request in made] == ["http://h:1/base/v1/runs/tldr/rollback"] * 3


# ------------------------------------------------------------------ deadlines


def test_grpc_tells_the_server_its_deadline(grpc_server, script, open_caller, is_async):
    caller = open_caller(grpc_server.url, is_async=is_async, timeout=7.0)
    caller("runs")
    assert 5.0 < script.seen[0].time_left < 7.1  # gRPC rounds up


def test_a_slow_server_ends_in_a_deadline(server, script, open_caller, is_async):
    leave = threading.Event()

    def slow(seen):
        leave.wait(5)
        return {"runs": []}

    script.steps += [slow]
    caller = open_caller(server.url, is_async=is_async, timeout=0.2)
    start = time.monotonic()
    try:
        with pytest.raises(TimeoutError) as caught:
            caller("runs")
    finally:
        leave.set()
    assert type(caught.value) is DeadlineError
    assert time.monotonic() - start < 2
    assert caller.pauses == []


def test_a_trickle_of_bytes_does_not_stretch_the_deadline(open_caller, is_async):
    """Each read is quick, the whole is not."""
    leave = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not leave.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        caller = open_caller(url, is_async=is_async, timeout=0.3)
        start = time.monotonic()
        try:
            with pytest.raises(DeadlineError):
                caller("runs")
        finally:
            leave.set()
            thread.join()
        assert time.monotonic() - start < 2


def test_the_last_failure_is_raised_instead_of_a_pause_past_the_deadline(
    server, script, open_caller, is_async
):
    script.steps += [Refuse(BUSY.problem, retry_after=100.0)]
    caller = open_caller(server.url, is_async=is_async, timeout=10.0)
    with pytest.raises(Overloaded, match="asks to wait 100 s, the call's timeout is 10 s"):
        caller("runs")
    assert caller.pauses == []


def test_the_servers_own_deadline_is_repeated(server, script, open_caller, is_async):
    caller = open_caller(server.url, is_async=is_async, retries=5)
    script.steps += [Refuse(Problem(Code.DEADLINE_EXCEEDED, "late"))]
    assert caller("runs")
    script.steps += [Refuse(Problem(Code.DEADLINE_EXCEEDED, "late"))] * 6
    with pytest.raises(ServerDeadline, match=r"late \(6 tries in [\d.]+ s\)$"):
        caller("runs")


def test_real_pauses(server, script):
    script.steps += [BUSY, BUSY]
    with Client(server.url, retries=Retry(3, base=0.01)) as client:
        assert client.runs()[0].run == "tldr"
