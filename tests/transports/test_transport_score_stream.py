from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport_score_stream import OPEN, Stream, announce, chunk, reward, until
from transport_wires import serving

from r2m.errors import Code, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.grpc import score_flow
from r2m_service.transports.limits import ByteBudget

MiB = 1 << 20


def rewards(scores) -> dict[str, float]:
    assert not [one for one in scores if one.HasField("error")]
    return {one.id: one.reward for one in scores}


async def test_the_head_comes_first_then_rewards():
    async with serving() as wires, Stream(wires) as stream:
        assert (stream.opened.run, stream.opened.head, stream.opened.branch) == ("x", 3, "main")
        assert stream.opened.omega == 0.6
        assert stream.opened.fingerprint == "f" * 64
        await stream.write(announce("a", 2), chunk("a", b"1234"), announce("b"))
        assert rewards(await stream.rest()) == {"a": reward(b"1234"), "b": reward(b"")}
        (_, run, request) = wires.application.calls[0]
        assert (run, request.head, request.step) == ("x", "", None)


async def test_what_open_says_reaches_the_application():
    opening = pb.ScoreStreamRequest(open=pb.ScoreRequest(run="x", head="7", step=3, branch="b"))
    async with serving() as wires, Stream(wires, opening=opening):
        (_, _, request) = wires.application.calls[0]
        assert (request.head, request.step, request.branch) == ("7", 3, "b")


async def test_without_a_run_it_is_vanilla():
    opening = pb.ScoreStreamRequest(open=pb.ScoreRequest())
    async with serving() as wires, Stream(wires, opening=opening) as stream:
        assert not stream.opened.HasField("head")
        await stream.write(announce("a"))
        assert len(await stream.rest()) == 1


async def test_answers_come_while_the_client_still_sends():
    async with serving() as wires, Stream(wires) as stream:
        await stream.write(announce("slow", 4), chunk("slow", b"1234"), announce("b"))
        assert (await stream.next()).id == "b"
        await stream.write(chunk("slow", b"5678"))
        assert (await stream.next()).reward == reward(b"12345678")


async def test_whole_chunks_and_a_rest():
    data = bytes(range(256)) * (2 * MiB // 256) + b"rest"
    async with serving(max_stream_bytes=4 * MiB) as wires, Stream(wires) as stream:
        await stream.write(announce("a", len(data) // 2))
        await stream.write(*(chunk("a", data[at : at + MiB]) for at in range(0, len(data), MiB)))
        assert rewards(await stream.rest()) == {"a": reward(data)}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data(), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_any_interleaving_gives_the_same_answers(draw, sizes, runner):
    """Every sample's messages in their order, the samples' mixed at random."""
    whole = {str(i): bytes([i + 1]) * (2 * size) for i, size in enumerate(sizes)}
    queues = []
    for name, data in whole.items():
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=3)))
        edges = [0, *cuts, len(data)]
        parts = [announce(name, len(data) // 2 or None)]
        if data:
            pairs = itertools.pairwise(edges)
            parts += [chunk(name, data[start:end]) for start, end in pairs if end > start]
        queues.append(parts)
    mixed = []
    while queues:
        place = draw.draw(st.integers(0, len(queues) - 1))
        mixed.append(queues[place].pop(0))
        queues = [one for one in queues if one]

    async def call():
        async with Stream(runner.wires) as stream:
            await stream.write(*mixed)
            found = rewards(await stream.rest())
            assert found == {name: reward(data) for name, data in whole.items()}

    runner.run(call())


# ------------------------------------------------------------------ a sample's own errors


@pytest.mark.parametrize(
    ("parts", "code", "field"),
    [
        ([announce("a", 4, format="xml"), chunk("a", b"12345678")], "invalid_request", "format"),
        ([announce("a", finish_reason="x" * 101)], "invalid_request", "finish_reason"),
        ([announce("a", 4), chunk("a", b"1" * 9)], "feedback_size", "feedback.data"),
        ([announce("a", 4), chunk("a", b"1" * 7), chunk("a", b"12"), chunk("a", b"1")],
         "feedback_size", "feedback.data"),
        ([announce("a", 4), chunk("a", b"1234567")], "feedback_size", None),  # too few
        ([announce("a", 4)], "feedback_size", None),  # none at all
        ([announce("a", MiB), chunk("a", b"1" * (MiB + 1))], "invalid_request", "feedback.data"),
        ([announce("a", 4 * MiB)], "too_large", "feedback.shape"),
        ([announce("a", shape=[2**31 - 1, 2**31 - 1])], "too_large", "feedback.shape"),
        ([announce("a", 3 * MiB // 2)], "too_large", None),  # the budget could never hold it
        ([announce("a", shape=[-1, -4]), chunk("a", b"1234")], "feedback_size", None),
        ([announce("a", shape=[2**62, 2**62]), chunk("a", b"1")], "feedback_size", None),
        ([announce("a", 4, dtype="float64"), chunk("a", b"12")], "feedback_size", None),
    ],
)  # fmt: skip
async def test_a_samples_error_is_its_own(parts, code, field):
    budget = ByteBudget(5 * MiB // 2)
    async with serving(budget=budget, max_stream_bytes=4 * MiB) as wires, Stream(wires) as stream:
        await stream.write(announce("before", 2), *parts, announce("after"))
        await stream.write(chunk("before", b"1234"))
        found = {one.id: one for one in await stream.rest()}
        assert set(found) == {"before", "a", "after"}
        assert (found["before"].reward, found["after"].reward) == (reward(b"1234"), 0)
        assert not found["a"].HasField("reward")
        assert found["a"].error.code == code
        assert (found["a"].error.field or None) == field
        assert budget.used == 0


async def test_data_in_the_announcement():
    early = announce("a", 2)
    early.sample.feedback.data = b"1234"
    async with serving() as wires, Stream(wires) as stream:
        await stream.write(early, chunk("a", b"1234"), announce("b"))
        found = {one.id: one.error.code for one in await stream.rest()}
        assert found == {"a": "invalid_request", "b": ""}


@pytest.mark.parametrize("numbers", [None, 2])
async def test_bytes_beyond_the_announced_are_never_ignored(numbers):
    """Bytes of another dtype than announced would otherwise make a reward, of half of them."""
    whole = [] if numbers is None else [chunk("a", b"1234")]
    async with serving() as wires, Stream(wires) as stream:
        wires.application.gate.clear()
        await stream.write(announce("a", numbers), *whole, chunk("a", b"5"))  # while it is scored
        found = await stream.next()
        assert (found.id, found.error.code) == ("a", "feedback_size")
        assert not found.HasField("reward")
        wires.application.gate.set()
        await stream.write(announce("a", numbers), *whole)
        assert (await stream.next()).HasField("reward")
        await stream.write(chunk("a", b"5"), chunk("a", b"6"))  # and after its answer
        found = await stream.next()
        assert (found.id, found.error.code) == ("a", "feedback_size")
        assert "do not use its reward" in found.error.message
        assert await stream.rest() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(Problem(Code.HEAD_DAMAGED, "gone"), "head_damaged"), (ZeroDivisionError(), "compute_failed")],
)
async def test_what_fails_below_fails_one_sample(error, code, caplog):
    async with serving() as wires, Stream(wires) as stream:
        wires.application.error = error
        await stream.write(announce("a", finish_reason="length"))
        found = await stream.next()
        assert (found.error.code, found.finish_reason) == (code, "length")
        wires.application.error = None
        await stream.write(announce("a"))
        assert (await stream.next()).HasField("reward")
    assert ("unexpected failure" in caplog.text) == (code == "compute_failed")


# ------------------------------------------------------------------ the stream's own errors


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ([], "invalid_request", "first message must be `open`"),
        ([announce("a")], "invalid_request", "first message must be `open`"),
        ([pb.ScoreStreamRequest()], "invalid_request", "first message must be `open`"),
        ([b"\xff\xff"], "invalid_request", "not a whole r2m.v1.ScoreStreamRequest"),
        ([pb.ScoreStreamRequest(open=pb.ScoreRequest(samples=[pb.Sample(id="a")]))],
         "invalid_request", "open.samples must be empty"),
        ([pb.ScoreStreamRequest(open=pb.ScoreRequest(run="x", step=0))],
         "invalid_request", "step must be at least 1"),
        ([pb.ScoreStreamRequest(open=pb.ScoreRequest(head="3"))], "invalid_request", "head"),
        ([OPEN, OPEN], "invalid_request", "samples and chunks only"),
        ([OPEN, pb.ScoreStreamRequest()], "invalid_request", "samples and chunks only"),
        ([OPEN, b"\xff\xff"], "invalid_request", "not a whole"),
        ([OPEN, announce("")], "invalid_request", "1 to 256 characters"),
        ([OPEN, announce("x" * 257)], "invalid_request", "1 to 256 characters"),
        ([OPEN, chunk("z", b"1")], "invalid_request", "'z', which was not announced"),
        ([OPEN, chunk("z", b"")], "invalid_request", "'z', which was not announced"),
        ([OPEN, announce("a", 4), announce("a", 4)], "duplicate_id", "'a' is in flight"),
        ([OPEN, announce("a", 4), chunk("a", b"12345678"), announce("a", 4)],
         "duplicate_id", "'a' is in flight"),
    ],
)  # fmt: skip
async def test_streams_of_another_form(parts, code, words):
    budget = ByteBudget(MiB)
    async with serving(budget=budget) as wires:
        wires.application.gate.clear()
        stream = Stream(wires)
        await stream.write(*parts)
        await stream.done()
        failure = await stream.failure()
        assert failure is not None
        assert failure.code == code
        assert words in failure.message
        await until(lambda: not budget.used)


async def test_a_head_that_is_not_there():
    async with serving() as wires:
        wires.application.error = Problem(Code.UNKNOWN_HEAD, "no head 7", field="head")
        stream = Stream(wires)
        await stream.write(OPEN, announce("a"))
        await stream.done()
        failure = await stream.failure()
        assert failure is not None
        assert (failure.code, failure.status.name) == ("unknown_head", "NOT_FOUND")


SOME = [OPEN, announce("a", 2), chunk("a", b"12"), chunk("b", b""), announce("b")]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=30) | st.sampled_from(SOME), max_size=6))
def test_any_messages_on_a_stream(runner, messages):
    async def call():
        stream = Stream(runner.wires)
        with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already
            await stream.write(OPEN, *messages)
            await stream.done()
        failure = await stream.failure()
        assert failure is None or failure.code in ("invalid_request", "duplicate_id")

    runner.run(call())


# ------------------------------------------------------------------ ids, late chunks, time


async def test_an_id_is_free_again_with_its_answer():
    async with serving() as wires, Stream(wires) as stream:
        for data in (b"1234", b"5678"):
            await stream.write(announce("a", 2), chunk("a", data))
            assert (await stream.next()).reward == reward(data)


async def test_an_idle_upload_expires_and_its_late_chunks_are_ignored():
    budget = ByteBudget(MiB)
    async with serving(idle_seconds=0.3, budget=budget) as wires, Stream(wires) as stream:
        await stream.write(announce("a", 4), announce("b", 400), chunk("a", b"12"))
        work = asyncio.create_task(_dribble(stream, "b", 800, pause=0.02, at_once=20))
        found = await stream.next()
        assert (found.id, found.error.code) == ("a", "deadline_exceeded")
        assert found.error.retryable
        assert 800 < budget.used < 1000  # b's alone
        await stream.write(chunk("a", b"34"), chunk("a", b"5678"), chunk("a", b"9"))
        assert (await stream.next()).reward == reward(b"x" * 800)  # slow, but not idle
        await work
        await stream.write(announce("a", 2), chunk("a", b"1234"))
        assert rewards(await stream.rest()) == {"a": reward(b"1234")}
        assert budget.used == 0


async def _dribble(stream, name, total, *, pause, at_once):
    for _ in range(total // at_once):
        await asyncio.sleep(pause)
        await stream.write(chunk(name, b"x" * at_once))


async def test_a_client_may_be_silent_between_samples():
    async with serving(idle_seconds=0.05) as wires, Stream(wires) as stream:
        await stream.write(announce("a"))
        assert (await stream.next()).id == "a"
        await asyncio.sleep(0.2)
        await stream.write(announce("b"))
        assert len(await stream.rest()) == 1


async def test_open_is_waited_for_so_long_only():
    async with serving(idle_seconds=0.05) as wires:
        failure = await Stream(wires).failure()
        assert failure is not None
        assert failure.code == "deadline_exceeded"


async def test_only_so_many_answered_ids_are_remembered(monkeypatch):
    monkeypatch.setattr(score_flow, "REMEMBERED", 2)
    async with serving() as wires, Stream(wires) as stream:
        for name in "abc":
            await stream.write(announce(name, 4, format="xml"))
            assert (await stream.next()).error.code == "invalid_request"
        await stream.write(chunk("b", b"1"), announce("d"))
        assert (await stream.next()).id == "d"
        await stream.write(chunk("a", b"1"))
        await stream.done()
        failure = await stream.failure()
        assert failure is not None
        assert "not announced" in failure.message


async def test_draining(monkeypatch):
    monkeypatch.setattr(score_flow, "READY_SECONDS", 0.05)
    async with serving() as wires, Stream(wires) as stream, Stream(wires) as idle:
        await stream.write(announce("a", 2), announce("b"))
        assert (await stream.next()).id == "b"
        wires.application.ready = False
        await stream.write(announce("c"))
        found = await stream.next()
        assert (found.id, found.error.code) == ("c", "not_ready")
        failure = await idle.failure()  # it would hold up the shutdown
        assert failure is not None
        assert (failure.code, failure.status.name) == ("not_ready", "UNAVAILABLE")
        await asyncio.sleep(1.5 * score_flow.READY_SECONDS)
        await stream.write(chunk("a", b"1234"))  # work at hand is done to its end
        assert (await stream.next()).reward == reward(b"1234")
        failure = await stream.failure()
        assert failure is not None
        assert failure.code == "not_ready"
