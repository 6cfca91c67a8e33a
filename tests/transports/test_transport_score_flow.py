"""ScoreStream's bounds: who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest
from transport_score_stream import OPEN, Stream, announce, chunk, reward, until
from transport_wires import serving

from r2m_service.transports.grpc import score_flow
from r2m_service.transports.limits import ByteBudget

BIG = 400  # numbers: 800 bytes


def whole(name: str, *, cuts: int = 2):
    data = name.encode() * 800
    step = 800 // cuts
    return data, [chunk(name, data[at : at + step]) for at in range(0, 800, step)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(score_flow, "HALT_SECONDS", 0.05)


async def test_a_sum_beyond_the_budget():
    budget = ByteBudget(1800)  # two of twenty
    async with serving(budget=budget) as wires, Stream(wires) as stream:
        wires.application.score_seconds = 0.005
        names = [chr(97 + n) for n in range(20)]
        for name in names:
            await stream.write(announce(name, BIG), *whole(name)[1])
        found = await stream.rest()
        assert {one.id: one.reward for one in found} == {n: reward(whole(n)[0]) for n in names}
        assert wires.application.most_scoring == 2
    assert budget.used == 0


async def test_announcements_first_then_chunks():
    """Samples stand in line, and the chunks of the admitted ones are read past them."""
    budget = ByteBudget(900)
    async with serving(budget=budget) as wires, Stream(wires) as stream:
        await stream.write(*(announce(name, BIG) for name in "abcd"))
        for name in "abcd":
            await stream.write(*whole(name)[1])
        found = await stream.rest()
        assert [one.id for one in found] == list("abcd")
        assert [one.reward for one in found] == [reward(whole(n)[0]) for n in "abcd"]
    assert budget.used == 0


async def test_bytes_are_reserved_before_the_first_is_taken_in_order():
    budget = ByteBudget(1000)
    async with serving(budget=budget) as wires, Stream(wires) as stream:
        await stream.write(announce("a", BIG), announce("b", BIG), announce("c", 10))
        await until(lambda: budget.used)
        await asyncio.sleep(0.05)
        assert 800 < budget.used < 900  # c would fit, but came after b
        await stream.write(*whole("a")[1])
        assert (await stream.next()).id == "a"
        await stream.write(chunk("c", b"c" * 20))
        assert (await stream.next()).id == "c"  # both fit now
        await stream.write(*whole("b")[1])
        assert (await stream.next()).id == "b"


async def test_interleaved_uploads_that_do_not_fit_together(quick):
    """a1 b1 a2 b2 with room for one: b1 can be neither kept nor skipped."""
    budget = ByteBudget(900)
    async with serving(budget=budget) as wires, Stream(wires) as stream:
        (a, (a1, a2)), (_, (b1, b2)) = whole("a"), whole("b")
        await stream.write(announce("a", BIG), announce("b", BIG), a1, b1, a2, b2)
        found = await stream.next()
        assert (found.id, found.error.code, found.error.retryable) == ("b", "overloaded", True)
        assert (await stream.next()).reward == reward(a)
        b, parts = whole("b")
        await stream.write(announce("b", BIG), *parts)  # the same id again
        assert [one.reward for one in await stream.rest()] == [reward(b)]
    assert budget.used == 0


async def test_interleaved_uploads_wait_for_others_room():
    """Full with a sample that will be scored soon: waiting helps, so nothing is refused."""
    budget = ByteBudget(2000)
    async with serving(budget=budget) as wires, Stream(wires) as one, Stream(wires) as two:
        wires.application.score_seconds = 0.2
        await one.write(announce("x", BIG), *whole("x")[1])
        await until(lambda: wires.application.scoring)
        (a, (a1, a2)), (b, (b1, b2)) = whole("a"), whole("b")
        await two.write(announce("a", BIG), announce("b", BIG), a1, b1, a2, b2)
        found = {one.id: one.reward for one in await two.rest()}
        assert found == {"a": reward(a), "b": reward(b)}


async def test_two_streams_cannot_hold_each_other(quick):
    budget = ByteBudget(1700)
    async with serving(budget=budget) as wires:

        async def upload(stream, first, second):
            (_, (a1, a2)), (_, (b1, b2)) = whole(first), whole(second)
            await stream.write(announce(first, BIG), announce(second, BIG), a1)
            await until(lambda: budget.used > 1600)
            await stream.write(b1, a2, b2)
            return {one.id: one.error.code for one in await stream.rest()}

        async with Stream(wires) as one, Stream(wires) as two:
            found = await asyncio.gather(upload(one, "a", "b"), upload(two, "c", "d"))
        for answers, first in zip(found, "ac", strict=True):
            assert answers.pop(first) == ""
            assert set(answers.values()) <= {"", "overloaded"}
    assert budget.used == 0


async def test_streams_without_half_uploads_wait_as_long_as_it_takes(quick):
    budget = ByteBudget(900)
    async with serving(budget=budget) as wires, Stream(wires) as one, Stream(wires) as two:
        wires.application.gate.clear()
        await one.write(announce("a", BIG), *whole("a")[1])
        await until(lambda: wires.application.scoring)
        await two.write(announce("b", BIG), *whole("b")[1], announce("c", BIG), *whole("c")[1])
        await asyncio.sleep(0.3)  # much longer than half uploads may wait
        assert wires.application.scoring == 1
        wires.application.gate.set()
        assert not any(one.HasField("error") for one in await two.rest())


async def test_the_clock_of_an_upload_stands_still_while_nothing_is_read(monkeypatch):
    monkeypatch.setattr(score_flow, "HALT_SECONDS", 0.4)
    async with serving(budget=ByteBudget(900), idle_seconds=0.2) as wires, Stream(wires) as stream:
        (a, (a1, a2)), (_, (b1, _)) = whole("a"), whole("b")
        await stream.write(announce("a", BIG), announce("b", BIG), a1, b1, a2)
        found = {one.id: one for one in (await stream.next(), await stream.next())}
        assert found["b"].error.code == "overloaded"
        assert found["a"].reward == reward(a)


async def test_an_upload_in_line_is_not_idle():
    budget = ByteBudget(900)
    bounds = {"budget": budget, "idle_seconds": 0.1}
    async with serving(**bounds) as wires, Stream(wires) as one, Stream(wires) as two:
        wires.application.gate.clear()
        await one.write(announce("a", BIG), *whole("a")[1])
        await until(lambda: wires.application.scoring)
        await two.write(announce("b", BIG))
        await asyncio.sleep(0.3)
        wires.application.gate.set()
        await two.write(*whole("b")[1])
        assert [one.error.code for one in await two.rest()] == [""]


async def test_samples_in_flight_are_bounded():
    async with serving(max_stream_samples=3) as wires, Stream(wires) as stream:
        app = wires.application
        app.gate.clear()
        await stream.write(*(announce(str(n)) for n in range(10)))
        await asyncio.sleep(0.1)
        assert app.scoring == 3
        app.gate.set()
        assert len(await stream.rest()) == 10
        assert app.most_scoring == 3


async def test_half_uploads_alone_can_fill_a_stream(quick):
    """Nothing in flight can end by itself: the sample beyond the bound is refused."""
    async with serving(max_stream_samples=2) as wires, Stream(wires) as stream:
        await stream.write(*(announce(name, BIG) for name in "abc"))
        found = await stream.next()
        assert (found.id, found.error.code) == ("c", "overloaded")
        await stream.write(*whole("c")[1], *whole("a")[1], *whole("b")[1])
        assert {one.id: one.error.code for one in await stream.rest()} == {"a": "", "b": ""}


async def test_announcements_in_line_are_bounded(quick, monkeypatch):
    monkeypatch.setattr(score_flow, "LINE_BYTES", 2000)
    async with serving(budget=ByteBudget(2000)) as wires, Stream(wires) as stream:
        long = "x" * 700
        await stream.write(announce("a", BIG))
        await stream.write(*(announce(name, BIG, prompt=long) for name in "bcd"))
        found = await stream.next()
        assert (found.id, found.error.code) == ("d", "overloaded")
        await stream.write(*whole("a")[1], *whole("b")[1], *whole("c")[1], *whole("d")[1])
        assert {one.id: one.error.code for one in await stream.rest()} == dict.fromkeys("abc", "")


async def test_a_client_that_never_reads():
    """Its samples stop being taken, what they held is free, and in the end so is the stream."""
    budget = ByteBudget(10_000)
    async with serving(budget=budget, max_stream_samples=50, idle_seconds=0.3) as wires:
        app = wires.application
        # Small windows, so that answers pile up at the server and not in the connection.
        small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        async with (
            grpc.aio.insecure_channel(wires.address, small) as channel,
            Stream(wires, channel=channel) as stream,
        ):

            async def flood():
                for n in range(100_000):
                    await stream.write(announce(name := str(n).zfill(200), 1), chunk(name, b"12"))

            work = asyncio.create_task(flood())
            taken = -1
            while taken != len(app.calls):  # until nothing is taken any more
                taken = len(app.calls)
                await asyncio.sleep(0.5)
            assert not work.done()
            assert (budget.used, app.scoring) == (0, 0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.rest_of_answers()
            # INTERNAL: grpc.aio's own word where a write is under way when the status comes.
            assert caught.value.code().name in ("DEADLINE_EXCEEDED", "INTERNAL")
            await asyncio.wait({work}, timeout=5)
            assert work.exception() is not None
        async with Stream(wires) as stream:  # and the server serves on
            await stream.write(announce("a"))
            assert len(await stream.rest()) == 1


@pytest.mark.parametrize("where", ["opening", "uploading", "in line", "scoring", "answered"])
async def test_a_client_that_vanishes_leaves_nothing_behind(where, caplog):
    budget = ByteBudget(1000)
    async with serving(budget=budget) as wires:
        app = wires.application
        stream = Stream(wires)
        await stream.write(OPEN)
        if where == "answered":
            await stream.write(announce("a", BIG), *whole("a")[1])
            await until(lambda: any(one[0] == "score_one" for one in app.calls))
        elif where != "opening":
            app.gate.clear()
            await stream.write(announce("a", BIG), whole("a")[1][0])
            await until(lambda: budget.used)
            if where == "in line":
                await stream.write(announce("b", BIG), whole("b")[1][0])
                await asyncio.sleep(0.05)
            if where == "scoring":
                await stream.write(whole("a")[1][1])
                await until(lambda: app.scoring)
        stream.cancel()
        await until(lambda: not budget.used and not app.scoring)
        async with asyncio.timeout(5):
            app.gate.set()
            async with Stream(wires) as stream:
                await stream.write(announce("a", BIG), *whole("a")[1])
                assert [one.error.code for one in await stream.rest()] == [""]
    assert "unexpected failure" not in caplog.text
