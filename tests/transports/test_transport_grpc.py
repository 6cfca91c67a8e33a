from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport_fakes import WEIGHTS
from transport_wires import SERVICE, Failure, serving

from r2m.errors import TABLE, Code, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.grpc.health import Health
from r2m_service.transports.grpc.messages import to_value
from r2m_service.transports.grpc.methods import UNARY


def request(**more):
    return pb.ScoreRequest(samples=[pb.Sample(id="a", prompt="p", response="rrrr")], **more)


async def test_all_methods_answer():
    async with serving() as wires:
        stub = wires.stub
        create = pb.CreateRunRequest(run="a")
        create.method.update({"width": 256, "alpha": 0.5, "gate": {"spread_min": None}})
        run = await stub.CreateRun(create)
        assert (run.run, run.next_step, run.aliases["live"]) == ("a", 3, 1)
        # A setting that is off is a setting: null stays among the settings.
        assert run.method["max_grad_norm"] is None
        assert run.method["omega"]["value"] == 0.6
        assert not run.branches[0].HasField("origin_branch")
        assert [one.run for one in (await stub.ListRuns(pb.ListRunsRequest())).runs] == ["a", "b"]
        assert (await stub.GetRun(pb.GetRunRequest(run="a"))).head == 1
        assert (await stub.DeleteRun(pb.DeleteRunRequest(run="a"))).archived
        vanilla = await stub.Score(request())
        assert not vanilla.HasField("head")
        assert vanilla.scores[0].reward == 1
        assert vanilla.scores[0].HasField("vanilla_reward")
        scored = await stub.Score(request(run="x", head="12"))
        assert scored.HasField("head")
        align = pb.AlignRequest(run="x", step=3, groups=[pb.Group(id="g")])
        aligned = await stub.Align(align)
        assert (aligned.step, aligned.candidate, aligned.loss.bt) == (3, 1, 0.5)
        assert aligned.errors[0].error.code == "text_empty"
        assert not aligned.loss.HasField("gre")
        assert dict(aligned.groups.skipped_because) == {"equal": 0}
        heads = (await stub.ListHeads(pb.ListHeadsRequest(run="a"))).heads
        assert heads[0].metrics["loss"]["bt"] == 0.5
        assert (await stub.GetHead(pb.GetHeadRequest(run="a", head="7"))).head == 7
        alias = await stub.SetAlias(pb.SetAliasRequest(run="a", alias="best", head=0, expect=1))
        assert (alias.head, alias.previous) == (0, 1)
        assert (await stub.Rollback(pb.RollbackRequest(run="a", to=0))).run == "a"
        assert (await stub.GetServer(pb.GetServerRequest())).deterministic
        calls = wires.application.calls
        # Whole numbers of the settings are integers again.
        assert repr(calls[0][1].method["width"]) == "256"
        assert calls[0][1].method["gate"] == {"spread_min": None}
        assert (calls[4][1], calls[5][1], calls[5][2].head) == (None, "x", "12")
        assert calls[-2][2].to == 0


async def test_weights_come_in_chunks():
    async with serving() as wires:
        call = wires.stub.GetHeadWeights(pb.GetHeadWeightsRequest(run="a", head="7"))
        pieces = [one.data async for one in call]
        assert [len(one) for one in pieces] == [1 << 20, 1 << 20, 3]
        assert b"".join(pieces) == WEIGHTS
        ahead = dict(await call.initial_metadata())
        assert (ahead["r2m-head"], ahead["r2m-sha256"]) == ("7", "a" * 64)


async def test_feedback_bytes_reach_the_application_as_they_are():
    data = bytes(range(256)) * 64
    message = request(run="x")
    feedback = message.samples[0].feedback
    feedback.dtype, feedback.data, feedback.last_token = "bfloat16", data, False
    feedback.shape.extend([2, 4096])
    async with serving() as wires:
        await wires.stub.Score(message)
        got = wires.application.calls[0][2].samples[0].feedback
    assert (got.data, got.shape, got.last_token, got.tokens) == (data, [2, 4096], False, None)


def test_what_is_absent_stays_absent():
    value = to_value(pb.AlignRequest(groups=[pb.Group(id="g", samples=[pb.Sample(id="a")])]))
    sample = {"id": "a", "format": "", "group": "", "messages": [], "token_ids": []}
    group = {"id": "g", "samples": [sample], "preferred": []}
    assert value == {"run": "", "step": 0, "groups": [group], "anchors": []}
    assert to_value(pb.RollbackRequest(to=0)) == {"run": "", "to": 0}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_settings_are_numbers_of_json(number):
    message = pb.CreateRunRequest(run="a")
    message.method.update({"alpha": number})
    async with serving() as wires:
        refused = await wires.over_grpc("CreateRun", message)
    assert refused.code == "invalid_request"


@pytest.mark.parametrize("code", list(Code))
async def test_every_code_comes_with_its_status(code):
    async with serving() as wires:
        wires.application.error = Problem(code, "so “it” is", field="a[0].b")
        weights = wires.stub.GetHeadWeights(pb.GetHeadWeightsRequest(run="a", head="7"))
        for refused in (
            await wires.over_grpc("GetRun", pb.GetRunRequest(run="a")),
            await wires.over_grpc("Score", pb.ScoreRequest()),
            (await wires.stream(pb.AlignStreamRequest(request=pb.AlignRequest(step=1))))[1],
        ):
            assert isinstance(refused, Failure)
            row = TABLE[code]
            assert refused.code == code.value
            assert (refused.status.name, refused.retryable) == (row.grpc, row.retryable)
            assert (refused.message, refused.field) == ("so “it” is", "a[0].b")
            assert (refused.pause is not None) == row.retryable
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await weights.read()
        assert caught.value.code().name == TABLE[code].grpc


async def test_long_messages_fit_into_the_metadata():
    async with serving() as wires:
        wires.application.error = Problem(
            Code.UNKNOWN_RUN, "ω" * 10_000 + "\ud800", field="x" * 10_000
        )
        refused = await wires.over_grpc("GetRun", pb.GetRunRequest(run="a"))
    assert refused.code == "unknown_run"
    assert refused.message.endswith("ω…")
    assert len(refused.message.encode()) <= 1024


async def test_our_own_bugs_are_logged_and_answered_as_compute_failed(caplog):
    async with serving() as wires:
        wires.application.error = RuntimeError("secret")
        with caplog.at_level(logging.ERROR):
            refused = await wires.over_grpc("GetRun", pb.GetRunRequest(run="a"))
            _, streamed = await wires.stream(pb.AlignStreamRequest(request=pb.AlignRequest(step=1)))
    for one in (refused, streamed):
        assert (one.code, one.status) == ("compute_failed", grpc.StatusCode.UNAVAILABLE)
        assert "secret" not in one.message
    assert "unexpected failure of GetRun" in caplog.text


async def test_work_cancelled_inside_the_server_is_not_ready():
    async with serving() as wires:
        wires.application.error = asyncio.CancelledError()
        refused = await wires.over_grpc("Score", request())
        assert refused.code == "not_ready"
        _, streamed = await wires.stream(pb.AlignStreamRequest(request=pb.AlignRequest(step=1)))
        assert streamed is not None
        assert streamed.code == "not_ready"


async def test_a_client_that_cancels_gives_up_its_work_and_nothing_else(caplog):
    async with serving() as wires:
        app = wires.application
        app.score_seconds = 30
        call = wires.stub.Score(request())
        await app.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while not app.cancelled:
            await asyncio.sleep(0.01)
        app.score_seconds = 0
        assert (await wires.stub.Score(request())).scores[0].reward == 1
    assert "unexpected failure" not in caplog.text


async def test_a_deadline_gives_up_the_work():
    async with serving() as wires:
        wires.application.score_seconds = 30
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wires.stub.Score(request(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while not wires.application.cancelled:
            await asyncio.sleep(0.01)


async def test_messages_are_bounded():
    async with serving(max_bytes=1000) as wires:
        message = pb.ScoreRequest(samples=[pb.Sample(id="a", prompt="x" * 1000)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wires.stub.Score(message)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not wires.application.calls


async def test_methods_that_are_not_there():
    async with serving() as wires:
        for path in (f"/{SERVICE}/Nothing", "/other.Service/Score"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await wires.channel.unary_unary(path)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_follows_what_it_is_told():
    status = health_pb2.HealthCheckResponse
    health = Health()
    async with serving(health=health) as wires:
        stub = health_pb2_grpc.HealthStub(wires.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        for serving_, expected in ((None, status.SERVING), (False, status.NOT_SERVING)):
            if serving_ is not None:
                await health.set_serving(serving_)
            assert (await watch.read()).status == expected
            for name in ("", SERVICE):
                got = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert got.status == expected
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch.cancel()


async def test_reflection_names_the_services():
    async with serving() as wires:
        stub = reflection_pb2_grpc.ServerReflectionStub(wires.channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await call.done_writing()
        names = {one.name for one in (await call.read()).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names


WHOLE = request(run="x", head="live").SerializeToString()


async def test_messages_cut_short_are_invalid():
    async with serving() as wires:
        seen = set()
        for end in range(len(WHOLE)):
            got = await wires.raw("Score", WHOLE[:end])
            seen.add(got.code if isinstance(got, Failure) else "ok")
        assert seen == {"invalid_request", "ok"}  # some cuts leave a whole, shorter message
        refused = await wires.raw("Score", WHOLE[:-1])
        assert refused.status is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.message == "the message is not a whole r2m.v1.ScoreRequest"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([*UNARY, "GetHeadWeights"]),
    data=st.binary(max_size=60)
    | st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=3), st.integers(0, 5)).map(
        lambda cut: WHOLE[: cut[0]] + cut[1] + WHOLE[cut[0] + cut[2] :]
    ),
)
def test_any_bytes_get_an_answer_of_the_documented_form(method, data, runner):
    async def call():
        got = await runner.wires.raw(method, data)
        if isinstance(got, Failure):
            # The fake's answer to a head that is no number is a bug of the fake.
            assert got.code == "invalid_request" or method.startswith("GetHead"), got

    runner.run(call())
