"""What is let in, what is refused before it is read, and what is told of it."""

from __future__ import annotations

import asyncio

import pytest
from transport_wires import Failure, grpc_failure, http_failure, serving

from r2m.errors import Code, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.application.line import Line
from r2m_service.application.timings import timed, timings
from r2m_service.transports.limits import ByteBudget, RequestLimit, while_ready


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_are_counted_over_both_transports():
    requests = RequestLimit(1)
    async with serving(requests=requests) as wires:
        wires.application.score_seconds = 30
        waiting = asyncio.create_task(wires.http.post("/v1/score", json={"samples": []}))
        await wires.application.begun.wait()
        refused = await wires.over_grpc("Score", pb.ScoreRequest(samples=[pb.Sample(id="a")]))
        assert isinstance(refused, Failure)
        assert (refused.code, refused.status.name, refused.pause) == (
            "overloaded", "RESOURCE_EXHAUSTED", 1,
        )  # fmt: skip
        refused = await wires.over_http("POST", "/v1/score", json={"samples": []})
        assert isinstance(refused, Failure)
        assert (refused.code, refused.status, refused.pause) == ("overloaded", 429, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert requests.used == 0


@pytest.mark.parametrize("path", ["/v1/score", "/v1/runs/r/score", "/v1/runs/r/evaluate"])
async def test_a_full_line_refuses_before_the_body_is_read(path: str):
    async with serving() as wires:
        wires.application.full = True
        read = False

        async def body():
            nonlocal read
            read = True
            yield b"{}"

        response = await wires.http.post(path, content=body(), headers={"content-length": "2"})
        refused = http_failure(response)
        assert (refused.code, refused.status, refused.pause) == ("overloaded", 429, 1)
        assert not read
        for method, message in (
            ("Score", pb.ScoreRequest(run="r")),
            ("Evaluate", pb.EvaluateRequest(run="r")),
        ):
            refused = await wires.over_grpc(method, message)
            assert isinstance(refused, Failure)
            assert (refused.code, refused.status.name) == ("overloaded", "RESOURCE_EXHAUSTED")


async def test_a_grpc_message_is_not_read_before_there_is_room_for_the_largest():
    budget = ByteBudget(3000)
    async with serving(budget=budget, max_bytes=2000) as wires:
        async with budget.hold(1500, wait=False):
            refused = await wires.over_grpc("Score", pb.ScoreRequest())
            assert isinstance(refused, Failure)
            assert (refused.code, refused.status.name) == ("overloaded", "RESOURCE_EXHAUSTED")
            assert wires.application.calls == []
        wires.application.score_seconds = 30
        message = pb.ScoreRequest(samples=[pb.Sample(id="a", prompt="0123456789", response="x")])
        waiting = asyncio.ensure_future(wires.stub.Score(message))
        await wires.application.begun.wait()
        assert budget.used == message.ByteSize()  # what it has not taken is free again
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_line_has_room_for_whoever_comes():
    line = Line(100)
    with line.hold("a", 50):
        with pytest.raises(Problem) as caught:  # as many as are free, and no more
            line.require_room("a")
        assert caught.value.code is Code.OVERLOADED
        line.require_room("b")
        with line.hold("b", 1000):  # it was let in before anybody knew
            with pytest.raises(Problem):
                line.require_room("b")
            line.require_room("c")
    assert line.used == 0
    line.require_room("a")


async def test_streams_wait_in_line_in_order_and_nobody_passes_them():
    line, order, first = Line(2), [], asyncio.Event()

    async def sample(name: str, until: asyncio.Event) -> None:
        async with line.wait("a"):
            order.append(name)
            await until.wait()

    tasks = [asyncio.create_task(sample("1", first))]
    await settle()
    free = asyncio.Event()
    tasks += [asyncio.create_task(sample(name, free)) for name in "234"]
    await settle()
    assert order == ["1"]
    with pytest.raises(Problem):
        line.require_room("a")
    line.require_room("b")
    tasks[1].cancel()
    first.set()
    await settle()
    assert order == ["1", "3"]
    free.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["1", "3", "4"]
    assert line.used == 0


async def test_a_call_past_its_time_is_given_up():
    async with serving() as wires:
        wires.application.score_seconds = 30
        given = {"json": {"samples": []}, "headers": {"X-Request-Timeout": "0.05"}}
        refused = await wires.over_http("POST", "/v1/score", **given)
        assert isinstance(refused, Failure)
        assert (refused.code, refused.status) == ("deadline_exceeded", 504)
        assert wires.application.cancelled == ["score"]
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            await wires.stub.Score(pb.ScoreRequest(), timeout=0.3)
        async with asyncio.timeout(5):
            while len(wires.application.cancelled) < 2:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", ""])
async def test_a_time_that_is_none_is_refused(given: str):
    async with serving() as wires:
        refused = await wires.over_http(
            "POST", "/v1/score", json={"samples": []}, headers={"X-Request-Timeout": given}
        )
        assert isinstance(refused, Failure)
        assert (refused.code, refused.field) == ("invalid_request", "X-Request-Timeout")


async def test_an_answer_tells_where_its_time_went():
    async with serving() as wires:
        answered = wires.application.score

        async def score(run, request):
            timings().add("queue", 0.25)
            await asyncio.to_thread(lambda: timings().add("backbone", 0.5))
            return await answered(run, request)

        wires.application.score = score
        response = await wires.http.post("/v1/score", json={"samples": []})
        expected = "queue;dur=250.000, backbone;dur=500.000"
        assert response.headers["server-timing"] == expected
        call = wires.stub.Score(pb.ScoreRequest())
        await call
        assert dict(await call.trailing_metadata())["server-timing"] == expected
    with timed() as spent:
        pass
    timings().add("head", 1.0)  # no call is at hand: nobody's
    assert spent.seconds == {}


async def test_readyz_shows_the_limits_and_their_use():
    budget, requests = ByteBudget(1000), RequestLimit(7)
    async with serving(budget=budget, requests=requests) as wires:
        wires.application.in_line = 5
        async with budget.hold(100, wait=False):
            with requests.hold():
                found = (await wires.http.get("/readyz")).json()
    assert found == {
        "status": "ready",
        "limits": {
            "inflight_bytes": {"used": 100, "limit": 1000},
            "inflight_requests": {"used": 1, "limit": 7},
            "queue_samples": {"used": 5, "limit": 100},
        },
    }


async def test_what_a_client_has_not_sent_does_not_hold_up_a_shutdown():
    async with serving(idle_seconds=60) as wires:

        async def dribble():
            yield b'{"samples"'
            wires.application.ready = False
            await asyncio.sleep(60)
            yield b""

        given = {"content": dribble(), "headers": {"content-length": "15"}}
        refused = await asyncio.wait_for(wires.over_http("POST", "/v1/score", **given), 10)
        assert isinstance(refused, Failure)
        assert (refused.code, refused.status) == ("not_ready", 503)
        wires.application.ready = True
        for method in ("AlignStream", "ScoreStream", "Score"):
            wires.application.ready = True
            call = wires.channel.stream_stream(f"/r2m.v1.RewardModelService/{method}")()
            await asyncio.sleep(0.05)
            wires.application.ready = False
            with pytest.raises(Exception, match="the server is starting") as caught:
                await asyncio.wait_for(call.read(), 10)
            assert grpc_failure(caught.value).code == "not_ready"


async def test_a_wait_within_a_ready_server_is_left_alone():
    with pytest.raises(TimeoutError):
        async with while_ready(lambda: None):
            raise TimeoutError
