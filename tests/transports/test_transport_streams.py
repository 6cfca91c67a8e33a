from __future__ import annotations

import asyncio

import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport_wires import SERVICE, serving

from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.grpc import streams
from r2m_service.transports.limits import ByteBudget

MiB = 1 << 20


def first(*samples: tuple[str, str | None, list[int]], **more):
    """A first message with one group of (id, dtype, shape); no dtype: no feedback."""
    group = pb.Group(id="g")
    for name, dtype, shape in samples:
        one = group.samples.add(id=name, prompt="p", response="r")
        if dtype is not None:
            one.feedback.dtype = dtype
            one.feedback.shape.extend(shape)
    request = pb.AlignRequest(run="x", step=1, groups=[group], **more)
    return pb.AlignStreamRequest(request=request)


def chunk(name: str, data: bytes):
    return pb.AlignStreamRequest(chunk=pb.Chunk(id=name, data=data))


def given_to(wires, name: str) -> bytes | None:
    (_, _, request) = wires.application.calls[-1]
    (found,) = (one for one in request.groups[0].samples if one.id == name)
    return None if found.feedback is None else bytes(found.feedback.data)


async def test_chunks_are_put_where_they_belong():
    a, b = bytes(range(256)) * (2 * MiB // 256), b"b" * 8
    async with serving(max_stream_bytes=16 * MiB) as wires:
        answers, failure = await wires.stream(
            first(("a", "float32", [1, MiB // 2]), ("b", "bfloat16", [1, 4]), ("c", None, [])),
            chunk("a", a[:MiB]),
            chunk("b", b[:3]),
            chunk("a", a[MiB:]),
            chunk("a", b""),
            chunk("b", b[3:]),
        )
        assert failure is None
        assert answers[-1].answer.step == 1
        assert (given_to(wires, "a"), given_to(wires, "b")) == (a, b)
        assert given_to(wires, "c") is None


async def test_too_few_bytes_are_left_to_the_application():
    async with serving() as wires:
        _, failure = await wires.stream(
            first(("a", "float16", [2, 4]), ("b", "float16", [2, 4])), chunk("a", b"123")
        )
        assert failure is None
        assert (given_to(wires, "a"), given_to(wires, "b")) == (b"123", b"")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float64", [1, 4]), ("", [1, 4]), ("float32", []), ("float32", [0, 4]),
     ("float32", [-1, -4]), ("float32", [2**62, 2**62]), ("float32", [1, 2, 3])],
)  # fmt: skip
async def test_what_cannot_be_sized_is_its_samples_error(dtype, shape):
    async with serving() as wires:
        _, failure = await wires.stream(first(("a", dtype, shape)), chunk("a", b"12345678"))
        assert failure is None
        assert given_to(wires, "a") == b""


ONE = first(("a", "bfloat16", [1, 4]))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "first message"),
        ([chunk("a", b"1")], "first message"),
        ([pb.AlignStreamRequest()], "first message"),
        ([b"\xff\xff"], "not a whole r2m.v1.AlignStreamRequest"),
        ([ONE, ONE], "chunks only"),
        ([ONE, pb.AlignStreamRequest()], "chunks only"),
        ([ONE, b"\xff\xff"], "not a whole"),
        ([ONE, chunk("z", b"1")], "'z', which is not in the request"),
        ([first(("a", None, [])), chunk("a", b"1")], "announced no hidden states"),
        ([ONE, chunk("a", b"1" * 9)], "more bytes"),
        ([ONE, chunk("a", b"1" * 8), chunk("a", b"2")], "more bytes"),
        ([first(("a", "float32", [1, MiB])), chunk("a", b"1" * (MiB + 1))], "a chunk may have"),
    ],
)
async def test_streams_of_another_form(parts, words):
    async with serving(max_stream_bytes=16 * MiB) as wires:
        _, failure = await wires.stream(*parts)
        assert failure is not None
        assert failure.code == "invalid_request"
        assert words in failure.message
        assert not wires.application.calls


async def test_data_in_the_first_message_and_equal_ids():
    early = first(("a", "bfloat16", [1, 4]))
    early.request.groups[0].samples[0].feedback.data = b"12345678"
    async with serving() as wires:
        _, failure = await wires.stream(early)
        assert failure is not None
        assert failure.field == "groups[0].samples[0].feedback.data"
        _, failure = await wires.stream(first(("a", None, []), ("a", None, [])))
        assert failure is not None
        assert (failure.code, failure.field) == ("duplicate_id", "groups[0].samples[1].id")


@pytest.mark.parametrize("shape", [[1, 3 * MiB], [2**31 - 1, 2**31 - 1]])
async def test_a_stated_size_beyond_the_bound(shape):
    budget = ByteBudget()
    async with serving(max_stream_bytes=10 * MiB, budget=budget) as wires:
        _, failure = await wires.stream(first(("a", "float32", shape)))
        assert failure is not None
        assert failure.code == "too_large"
        assert budget.used == 0


async def test_the_sum_of_all_samples_is_bounded():
    three = [(name, "float32", [1, 1000]) for name in "abc"]
    async with serving(max_stream_bytes=12_000) as wires:
        assert (await wires.stream(first(*three)))[1] is None
        _, failure = await wires.stream(first(*three, ("d", "float32", [1, 1])))
        assert failure is not None
        assert failure.code == "too_large"


async def test_progress_comes_while_it_works_and_not_too_often():
    async with serving() as wires:
        wires.application.align_seconds = 0.02
        request = pb.AlignRequest(step=1, groups=[pb.Group(id=str(i)) for i in range(40)])
        answers, failure = await wires.stream(pb.AlignStreamRequest(request=request))
    assert failure is None
    *steps, last = answers
    assert last.WhichOneof("part") == "answer"
    done = [one.progress.groups_done for one in steps]
    assert 1 <= len(done) <= 8
    assert done == sorted(set(done))
    assert {one.progress.groups_total for one in steps} == {40}


async def test_progress_that_stands_still_is_not_repeated(monkeypatch):
    monkeypatch.setattr(streams, "PROGRESS_SECONDS", 0.01)
    async with serving() as wires:
        wires.application.align_seconds = 0.1
        request = pb.AlignRequest(step=1, groups=[pb.Group(id="a"), pb.Group(id="b")])
        answers, _ = await wires.stream(pb.AlignStreamRequest(request=request))
    assert [one.progress.groups_done for one in answers[:-1]] == [1]


async def test_a_stream_that_pauses_is_given_up():
    async with serving(idle_seconds=0.05, budget=(budget := ByteBudget())) as wires:
        call = wires.channel.stream_stream(f"/{SERVICE}/AlignStream")(timeout=10)
        await call.write(ONE.SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        assert "no byte of the request" in (caught.value.details() or "")
        assert budget.used == 0


async def test_a_client_that_cancels_its_align(caplog):
    budget = ByteBudget()
    async with serving(budget=budget) as wires:
        app = wires.application
        app.align_seconds = 30
        call = wires.channel.stream_stream(f"/{SERVICE}/AlignStream")()
        await call.write(ONE.SerializeToString())
        await call.done_writing()
        await app.begun.wait()
        call.cancel()
        while budget.used or not app.cancelled:
            await asyncio.sleep(0.01)
        # And one that leaves in the middle of its chunks.
        call = wires.channel.stream_stream(f"/{SERVICE}/AlignStream")()
        await call.write(ONE.SerializeToString())
        while not budget.used:
            await asyncio.sleep(0.01)
        call.cancel()
        while budget.used:
            await asyncio.sleep(0.01)
        app.align_seconds = 0
        assert (await wires.stream(ONE, chunk("a", b"12345678")))[1] is None
    assert "unexpected failure" not in caplog.text


async def test_streams_wait_for_room():
    budget = ByteBudget(100_000)
    async with serving(budget=budget, max_stream_bytes=10**6) as wires:
        big = [("a", "float32", [1, 20_000])]
        one = wires.channel.stream_stream(f"/{SERVICE}/AlignStream")(timeout=10)
        await one.write(first(*big).SerializeToString())
        while not budget.used:
            await asyncio.sleep(0.01)
        two = asyncio.create_task(wires.stream(first(*big)))
        await asyncio.sleep(0.1)
        assert not two.done()
        assert not wires.application.calls
        await one.done_writing()
        _, failure = await two
        assert failure is None
        _, failure = await wires.stream(first(("a", "float32", [1, 25_000])))
        assert failure is not None
        assert failure.code == "too_large"  # it could never fit
    assert budget.used == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    cuts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=8),
)
def test_any_cut_into_chunks_gives_the_same_tensors(sizes, cuts, runner):
    whole = {str(i): bytes([i + 1]) * (2 * size) for i, size in enumerate(sizes)}
    at = dict.fromkeys(whole, 0)
    parts = [first(*((name, "float16", [1, len(one) // 2]) for name, one in whole.items()))]
    rests = [(i, 1000) for i in range(len(sizes))]
    for place, length in [*cuts, *rests]:
        name = str(place % len(sizes))
        parts.append(chunk(name, whole[name][at[name] : at[name] + length]))
        at[name] += length

    async def call():
        _, failure = await runner.wires.stream(*parts)
        assert failure is None
        assert {name: given_to(runner.wires, name) for name in whole} == whole

    runner.run(call())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40) | st.just(ONE.SerializeToString()), max_size=4))
def test_any_bytes_on_a_stream(runner, messages):
    async def call():
        _, failure = await runner.wires.stream(*messages)
        assert failure is None or failure.code in ("invalid_request", "duplicate_id", "too_large")

    runner.run(call())
