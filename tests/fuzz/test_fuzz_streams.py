"""Frames of streams, changed on their way to a real server: cut, twice, swapped, mixed, lying.

Whatever comes, the call ends by itself, with answers or with an error of the table; and afterwards
the server holds nothing of it and scores as before.
"""

from __future__ import annotations

import time

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m.errors import TABLE
from r2m.v1 import r2m_pb2 as pb
from r2m_client import Client
from r2m_service.transports.limits import ByteBudget

BUDGET = 1 << 20
IDLE = 0.3
METHOD = {"width": 8, "learning_rate": 3e-4}
SERVICE = "/r2m.v1.RewardModelService/"
STATUSES = {row.grpc for row in TABLE.values()}
CHUNK = 160


@pytest.fixture(scope="module")
def budget():
    return ByteBudget(BUDGET)


@pytest.fixture(scope="module")
def server(reward_model, tmp_path_factory, budget):
    bounds = {"budget": budget, "idle_seconds": IDLE}
    with running(reward_model, tmp_path_factory.mktemp("frames"), over_grpc=bounds) as one:
        with Client(one.urls["http"]) as client:
            client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        yield one


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as one:
        yield one


def sample_message(one, *, with_bytes=True):
    message = pb.Sample(id=one.id, prompt=one.prompt, response=one.response)
    message.feedback.dtype = "float32"
    message.feedback.shape.extend(one.hidden_states.shape)
    if with_bytes:
        message.feedback.data = one.hidden_states.tobytes()
    return message


def chunks_of(kind, one):
    data = one.hidden_states.tobytes()
    for start in range(0, len(data), CHUNK):
        yield kind(chunk=pb.Chunk(id=one.id, data=data[start : start + CHUNK]))


def score_frames():
    batch = samples(3, count=3)
    frames = [pb.ScoreStreamRequest(open=pb.ScoreRequest(run="r"))]
    for one in batch:
        frames.append(pb.ScoreStreamRequest(sample=sample_message(one, with_bytes=False)))
        frames += chunks_of(pb.ScoreStreamRequest, one)
    return [frame.SerializeToString() for frame in frames]


def align_frames():
    batch = groups(5)[:1]
    request = pb.AlignRequest(run="r", step=1)
    for group in batch:
        message = request.groups.add(id=group.id)
        message.samples.extend(sample_message(one, with_bytes=False) for one in group.samples)
    frames = [pb.AlignStreamRequest(request=request)]
    for group in batch:
        for one in group.samples:
            frames += chunks_of(pb.AlignStreamRequest, one)
    return [frame.SerializeToString() for frame in frames]


STREAMS = {"ScoreStream": score_frames(), "AlignStream": align_frames()}


@st.composite
def uploads(draw):
    """A stream's frames with up to four things done to them."""
    name = draw(st.sampled_from(sorted(STREAMS)))
    frames = list(STREAMS[name])
    for _ in range(draw(st.integers(1, 4))):
        if not frames:
            break
        place = draw(st.integers(0, len(frames) - 1))
        match draw(st.sampled_from(["drop", "twice", "swap", "short", "flip", "other", "end"])):
            case "drop":
                del frames[place]
            case "twice":
                frames.insert(draw(st.integers(0, len(frames))), frames[place])
            case "swap":
                other = draw(st.integers(0, len(frames) - 1))
                frames[place], frames[other] = frames[other], frames[place]
            case "short":
                frames[place] = frames[place][: draw(st.integers(0, len(frames[place])))]
            case "flip":
                data = bytearray(frames[place])
                if data:
                    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
                frames[place] = bytes(data)
            case "other":
                theirs = STREAMS[draw(st.sampled_from(sorted(STREAMS)))]
                frames[place] = draw(st.sampled_from(theirs))
            case "end":
                del frames[place:]
    return name, frames


@given(upload=uploads())
@settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_changed_frames_end_in_an_answer_or_a_refusal(server, channel, budget, upload):
    name, frames = upload
    call = channel.stream_stream(SERVICE + name)(iter(frames), timeout=20)
    try:
        answers = list(call)
    except grpc.RpcError as error:
        # CANCELLED would be our own deadline's doing; INTERNAL and UNKNOWN are never in the table.
        assert error.code().name in STATUSES, (error.code(), error.details(), frames)
        assert error.details()
    else:
        for raw in answers:
            kind = pb.ScoreStreamResponse if name == "ScoreStream" else pb.AlignStreamResponse
            assert kind.FromString(raw).WhichOneof("part")
    end = time.monotonic() + 5
    while budget.used and time.monotonic() < end:
        time.sleep(0.005)
    assert budget.used == 0


def test_and_the_server_still_scores(server):
    with Client(server.urls["grpc"], retries=0) as client:
        assert None not in client.score(samples(1), run="r").rewards
