"""SIGTERM drains within the set time, and a device that is lost shows, whatever clients do."""

from __future__ import annotations

import signal
import socket
import threading
import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.processes import serving

from r2m.v1 import r2m_pb2 as pb
from r2m_client import Client, ConnectError, R2MError, Sample

WIDTH = 8
SLOW = """
import time
from r2m_service.modeling.backbone import Backbone
encode = Backbone.encode
def slowly(self, batch, **more):
    if any(60 < len(ids) < 128 for ids in batch):
        time.sleep({seconds})
    return encode(self, batch, **more)
Backbone.encode = slowly
"""
LOST = """
import torch
from r2m_service.modeling.backbone import Backbone
encode = Backbone.encode
def breaks(self, batch, **more):
    if any(60 < len(ids) < 128 for ids in batch):
        raise torch.AcceleratorError("an illegal memory access was encountered")
    return encode(self, batch, **more)
Backbone.encode = breaks
"""
LONG = Sample("long", "Hi", "word " * 20)
"""More than 60 tokens: what the faults wait for. The check of a model at its start has 128."""


def drained(server):
    """Ends it, and sees how: with 0, without a traceback."""
    code, output = server.end(signal.SIGTERM)
    assert code == 0, output
    assert "Traceback" not in output, output[-3000:]
    assert "Task was destroyed" not in output


def test_clients_that_dribble_do_not_hold_up_a_shutdown(reward_model, tmp_path):
    # At the end of its time the drain cuts work off in other words: these are said at once.
    flags = ("--drain-seconds", "20")
    with serving(reward_model, tmp_path / "state", *flags) as server:
        with Client(server.http) as client:
            client.create_run("r", policy_hidden_size=WIDTH, method={"width": 8})
        host, port = server.http.removeprefix("http://").split(":")
        upload = socket.create_connection((host, int(port)))
        upload.sendall(b"POST /v1/score HTTP/1.1\r\nHost: r2m\r\nContent-Length: 999\r\n\r\n{")
        sample = pb.Sample(
            id="a", prompt="p", response="r",
            feedback=pb.Feedback(dtype="float32", shape=[100, WIDTH]),
        )  # fmt: skip
        group = pb.Group(id="g", samples=[sample])
        over = threading.Event()

        def dribble():
            yield pb.AlignStreamRequest(request=pb.AlignRequest(run="r", step=1, groups=[group]))
            while not over.wait(0.05):
                yield pb.AlignStreamRequest(chunk=pb.Chunk(id="a", data=b"\0"))

        with grpc.insecure_channel(server.grpc.removeprefix("grpc://")) as channel:
            call = channel.stream_stream(
                "/r2m.v1.RewardModelService/AlignStream",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.AlignStreamResponse.FromString,
            )(dribble())
            time.sleep(0.5)
            drained(server)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            over.set()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in caught.value.details()
        with upload, upload.makefile("rb") as answer:
            told = answer.read()
        assert told.startswith(b"HTTP/1.1 503")
        assert b"draining" in told


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_work_at_hand_is_finished_within_the_drain_time(reward_model, tmp_path, transport):
    fault = SLOW.format(seconds=2)
    with serving(reward_model, tmp_path / "state", first=fault) as server:
        found = []

        def score():
            with Client(getattr(server, transport), retries=0) as client:
                found.append(client.score([LONG]).rewards[0])

        caller = threading.Thread(target=score)
        caller.start()
        time.sleep(0.7)
        drained(server)
        caller.join()
    assert found[0] is not None


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_work_that_takes_longer_gets_a_retryable_error(reward_model, tmp_path, transport):
    flags = ("--drain-seconds", "1")
    fault = SLOW.format(seconds=4)
    with serving(reward_model, tmp_path / "state", *flags, first=fault) as server:
        found = []

        def score():
            with Client(getattr(server, transport), retries=0) as client:
                try:
                    client.score([LONG])
                except R2MError as error:
                    found.append(error)

        caller = threading.Thread(target=score)
        caller.start()
        time.sleep(0.7)
        drained(server)
        caller.join()
    (error,) = found
    if transport == "http":
        assert (error.code, error.retryable) == ("not_ready", True)
    else:  # gRPC itself ends the call: UNAVAILABLE, without details
        assert isinstance(error, ConnectError)


def test_a_lost_device_is_told_to_everyone(reward_model, tmp_path):
    with serving(reward_model, tmp_path / "state", first=LOST) as server:
        with grpc.insecure_channel(server.grpc.removeprefix("grpc://")) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            states = health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            with Client(server.http, retries=0) as client:
                (answer,) = client.score([LONG]).scores
                assert answer.error is not None
                assert (answer.error.code, answer.error.retryable) == ("compute_failed", True)
                with pytest.raises(R2MError) as caught:
                    client.score([Sample("short", "Hi", "you")])
                assert caught.value.code == "not_ready"
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            states.cancel()
        assert httpx.get(f"{server.http}/readyz").status_code == 503
        assert httpx.get(f"{server.http}/livez").status_code == 200
        code, _ = server.end(signal.SIGTERM)
        assert code == 0
