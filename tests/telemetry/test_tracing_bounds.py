"""What a trace costs at most, what is traced at all, and what a call may say of itself."""

import logging
import threading
import time
from types import SimpleNamespace

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from support.collector import collecting
from support.processes import Process
from support.serving import running

from r2m.v1 import r2m_pb2 as pb
from r2m_client import Client
from r2m_service.access.keyfile import KeyFile
from r2m_service.application import about
from r2m_service.application.metrics_port import NO_METRICS
from r2m_service.application.timings import MOST_INTERVALS, timings
from r2m_service.domain.access import Scope
from r2m_service.telemetry.tracing import OtlpTracing
from r2m_service.transports import arrival
from r2m_service.transports.access import Gate
from r2m_service.transports.arrival import arrive, arrived, brought
from r2m_service.transports.counting import counted

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
INSIDE = 1


@pytest.fixture(autouse=True)
def nobodys_call():
    """`arrive` is for a call's own task; here it is the tests' thread, which others use too."""
    yield
    about._now.set(None)
    arrival._now.set(None)


@pytest.fixture
def traces():
    made = []

    def make(url, **more):
        made.append(OtlpTracing(url, **more))
        return made[-1]

    yield make
    for one in made:
        one.close(5)


def test_a_call_of_ten_thousand_batches_has_a_bounded_number_of_spans(traces):
    with collecting() as (url, found):
        tracing = traces(url)
        arrive({}, tracing)
        with counted(NO_METRICS, "http", "score"):
            for _ in range(10_000):
                timings().took("backbone", 0.0, 1.0)
        tracing.close(10)
    inside = [one for one in found.spans if one.name == "backbone"]
    (call,) = [one for one in found.spans if one.name == "score"]
    assert len(inside) == MOST_INTERVALS
    assert call.facts["r2m.spans_left_out"] == 10_000 - MOST_INTERVALS


def test_the_last_spans_hold_the_servers_end_up_for_so_long_and_no_longer(monkeypatch):
    """Whatever OpenTelemetry makes of its own limits: here it would never come back."""
    let_go, tracing = threading.Event(), OtlpTracing("http://127.0.0.1:9")
    with monkeypatch.context() as for_now:
        for_now.setattr(TracerProvider, "shutdown", lambda _: let_go.wait(120))
        ending = threading.Thread(target=tracing.close, args=(0.1,))
        ending.start()
        ending.join(30)
        held = ending.is_alive()
        let_go.set()
        ending.join()
    tracing.close(10)  # its thread ends, too
    assert not held


def test_samples_of_a_stream_are_traced_with_it_or_not_at_all(traces):
    """Otherwise a share of 0.3 would be thousands of traces of single samples of other streams."""
    tracing = traces("http://127.0.0.1:9", share=0.3)
    whole, parts = [], []
    for _ in range(60):
        arrive({}, tracing)
        with counted(NO_METRICS, "grpc", "score_stream"):
            whole.append(arrived().span.recording)
            for _ in range(5):
                with counted(NO_METRICS, "grpc", "stream_sample", part=True):
                    parts.append(timings().intervals is not None)
    assert 0 < sum(whole) < 60
    assert parts == [one for one in whole for _ in range(5)]


def test_a_part_of_a_call_is_no_call_of_its_own(traces):
    with collecting() as (url, found):
        tracing = traces(url)
        arrive({"traceparent": PARENT}, tracing)
        with (
            counted(NO_METRICS, "grpc", "score_stream"),
            counted(NO_METRICS, "grpc", "stream_sample", part=True),
        ):
            pass
        tracing.close(10)
    part, whole = sorted(found.spans, key=lambda one: one.name, reverse=True)
    assert (part.name, part.kind, part.parent) == ("stream_sample", INSIDE, whole.id)
    assert (whole.trace, whole.parent) == (TRACE_ID, SPAN_ID)


def test_a_bug_of_ours_is_no_ok(caplog):
    caplog.set_level(logging.INFO, "r2m.access")
    arrive({}, SimpleNamespace(begin=lambda *_: arrived().span))
    with pytest.raises(ZeroDivisionError), counted(NO_METRICS, "http", "score"):
        _ = 1 / 0
    (line,) = caplog.records
    assert line.getMessage() == "score compute_failed"


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ([("tracestate", "a=1"), ("tracestate", "b=2")], {"tracestate": "a=1,b=2"}),
        ([("traceparent", PARENT), ("traceparent", PARENT)], {"traceparent": ""}),
        ([("x-request-id", "one"), ("x-request-id", "two")], {"x-request-id": ""}),
    ],
)
def test_what_comes_twice(sent, found):
    assert brought(sent) == found


def test_a_trace_that_is_none_begins_a_new_one(reward_model, backbone, tmp_path):
    """On both transports, whatever a header says; and the call is answered."""
    bad = ["nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}", "x" * 5000, "é"]
    with (
        collecting() as (url, found),
        running(reward_model, tmp_path, backbone=backbone, otlp_endpoint=url) as server,
    ):
        with httpx.Client(base_url=server.urls["http"]) as http:
            for one in bad:
                headers = [(b"traceparent", one.encode()), (b"traceparent", PARENT.encode())]
                assert http.get("/v1/server", headers=headers).status_code == 200
                assert http.get("/v1/server", headers=headers[:1]).status_code == 200
        with grpc.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as channel:
            for one in bad[:4]:
                _call(channel)(b"", metadata=(("traceparent", one),))
        server.parts.traces.close(10)
    assert len(found.spans) == 2 * len(bad) + 4
    assert {one.parent for one in found.spans} == {""}
    assert TRACE_ID not in {one.trace for one in found.spans}


def test_who_is_refused_at_the_door_has_a_line_a_span_and_a_count(
    reward_model, backbone, tmp_path, caplog
):
    """gRPC asks for keys before a handler runs; HTTP's calls are counted around all of it."""
    keys = KeyFile(tmp_path / "keys.json")
    _, key = keys.create("scorer", Scope.SCORE)
    caplog.set_level(logging.INFO, "r2m.access")
    with (
        collecting() as (url, found),
        running(
            reward_model, tmp_path / "s", backbone=backbone, otlp_endpoint=url,
            over_grpc={"gate": Gate(keys)},
        ) as server,
        grpc.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as channel,
    ):  # fmt: skip
        for metadata in ((), (("authorization", "Bearer r2m_nobody_x"),)):
            with pytest.raises(grpc.RpcError) as refused:
                _call(channel)(b"", metadata=(*metadata, ("traceparent", PARENT)))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError):
            _call(channel, "CreateRun")(b"", metadata=(("authorization", f"Bearer {key}"),))
        with pytest.raises(grpc.RpcError):
            list(
                channel.stream_stream(
                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
                )(iter(()))
            )
        server.parts.traces.close(10)
        count = server.parts.collected.get_sample_value
        labels = {"transport": "grpc", "method": "get_server", "code": "unauthenticated"}
        assert count("r2m_requests_total", labels) == 2
    told = [one.getMessage() for one in caplog.records]
    assert told == [*["get_server unauthenticated"] * 2, "create_run forbidden",
                    "unknown unauthenticated"]  # fmt: skip
    assert key not in caplog.text
    assert [(one.name, one.error) for one in found.spans][:2] == [
        ("get_server", "unauthenticated")
    ] * 2
    assert found.spans[0].trace == TRACE_ID


def _call(channel, method="GetServer"):
    return channel.unary_unary(
        f"/r2m.v1.RewardModelService/{method}",
        response_deserializer=pb.GetServerResponse.FromString,
    )


ABSENT = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
"""
"""Without the extra; the API may be there all the same, since FastAPI brings it."""


def test_who_asks_for_traces_without_the_extra_is_told_what_to_install(reward_model, tmp_path):
    server = Process(
        reward_model, tmp_path, "--otlp-endpoint", "http://127.0.0.1:4318", first=ABSENT
    )
    output, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 1
    assert "pip install 'r2m-serve[otel]'" in output
    assert "Traceback" not in output


def test_it_is_not_even_imported_where_nobody_asked(reward_model, tmp_path):
    server = Process(reward_model, tmp_path, first=ABSENT).wait_ready()
    try:
        with Client(server.http) as client:
            client.server()
    finally:
        code, output = server.end()
    assert code == 0, output


def test_the_standard_variables_hold(reward_model, backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "rewards-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with (
        collecting() as (url, found),
        running(reward_model, tmp_path, backbone=backbone, otlp_endpoint=url) as server,
    ):
        began = time.monotonic()
        httpx.get(f"{server.urls['http']}/v1/server")
        found.wait(1)
        assert time.monotonic() - began < 4  # by itself it would be five seconds
    assert {one.service for one in found.spans} == {"rewards-7"}


INJECTED = """
import sys
from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
spans, logs = TracerProvider(), LoggerProvider()
spans.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
logs.add_log_record_processor(SimpleLogRecordProcessor(ConsoleLogRecordExporter(out=sys.stderr)))
trace.set_tracer_provider(spans)
_logs.set_logger_provider(logs)
import r2m_service.transports.http.app as app
def broken(application, app):
    routes = app_routes(application, app)
    @routes.get("/v1/broken")
    async def broken():
        raise ValueError("canary-4711")
    return routes
app_routes, app._server = app._server, broken
"""


def test_the_frameworks_own_telemetry_is_off_whatever_the_process_has(
    reward_model, tmp_path, monkeypatch
):
    """FastAPI would send queries, and what exceptions say, to any provider that is injected."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = Process(reward_model, tmp_path, "--log-format", "json", first=INJECTED).wait_ready()
    try:
        assert httpx.get(f"{server.http}/v1/broken").status_code == 503
        assert httpx.get(f"{server.http}/v1/runs/x/heads?limit=canary-4711").status_code == 404
    finally:
        code, output = server.end()
    assert code == 0, output
    assert "unexpected failure of" in output
    assert "canary-4711" not in output
    assert [line for line in output.splitlines() if not line.startswith("{")] == []
