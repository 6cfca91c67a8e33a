"""Traces as a collector gets them: from a client's own span to the registry."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from opentelemetry import trace
from support.collector import collecting
from support.processes import Process
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m_client import Client, NotFound

CLIENT, SERVER, INSIDE = 3, 2, 1
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0{sampled}"
TRACE_ID, SPAN_ID = PARENT.split("-")[1:3]

TRAINER = """
import sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
sys.path.insert(0, "tests")
from support.rollouts import WIDTH_P, groups, samples
from r2m_client import Client, NotFound

collector, *urls = sys.argv[1:]
provider = TracerProvider(resource=Resource.create({"service.name": "trainer"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(collector + "/v1/traces")))
trace.set_tracer_provider(provider)
for url in urls:
    run = "run-" + url.split(":")[0]
    with Client(url) as client:
        client.create_run(run, policy_hidden_size=WIDTH_P, method={"width": 16})
        with trace.get_tracer("trainer").start_as_current_span("step of " + run):
            client.score(samples(1), run=run)
            client.align(run, step=1, groups=groups(1))
            try:
                client.run("nobody")
            except NotFound:
                pass
provider.shutdown()
"""


@pytest.fixture(scope="module")
def traced(reward_model, tmp_path_factory):
    """What a collector has of a trainer and a server, each a process, once both have ended."""
    with collecting() as (url, found):
        server = Process(
            reward_model, tmp_path_factory.mktemp("traced"), "--otlp-endpoint", url
        ).wait_ready()
        try:
            subprocess.run(
                [sys.executable, "-c", TRAINER, url, server.http, server.grpc],
                check=True,
                timeout=120,
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
            )
        finally:
            # At once: what the server has not sent yet must come with its end.
            code, output = server.end()
        assert code == 0, output
        yield found


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_one_trace_from_the_trainer_to_the_registry(traced, transport):
    root = next(one for one in traced.spans if one.name == f"step of run-{transport}")
    assert {one.trace for one in traced.spans if one.facts.get("r2m.run") == f"run-{transport}"} > {
        root.trace
    }
    calls = {one.name: one for one in traced.below(root)}
    assert set(calls) == {"r2m Score", "r2m Align", "r2m GetRun"}
    assert {one.kind for one in calls.values()} == {CLIENT}
    assert {one.service for one in calls.values()} == {"trainer"}
    servers = {name: traced.below(one) for name, one in calls.items()}
    assert all(len(one) == 1 for one in servers.values())
    score, align, missing = (servers[name][0] for name in ("r2m Score", "r2m Align", "r2m GetRun"))
    assert {score.service, align.service} == {"r2m-serve"}
    assert {score.kind, align.kind} == {SERVER}

    facts = score.facts
    assert facts["r2m.run"] == f"run-{transport}"
    assert (facts["r2m.head"], facts["r2m.samples"], facts["r2m.code"]) == (0, 4, "ok")
    assert facts["r2m.transport"] == transport
    inside = {one.name: one for one in traced.below(score)}
    # The head itself is read once: both runs begin with the same.
    assert set(inside) - {"registry.head"} == {
        *("registry.run", "tokenize", "queue", "backbone", "head")
    }
    assert inside["backbone"].facts["r2m.batch_samples"] == 4
    # The second client's texts are those of the first: they come from the cache.
    assert (inside["backbone"].facts["r2m.tokens_computed"] > 0) is (transport == "http")
    order = [inside[name] for name in ("registry.run", "tokenize", "queue", "backbone", "head")]
    assert [one.start for one in order] == sorted(one.start for one in order)
    for one in inside.values():
        assert one.kind == INSIDE
        assert score.start <= one.start <= one.end <= score.end

    facts = align.facts
    assert (facts["r2m.step"], facts["r2m.head"], facts["r2m.verdict"]) == (1, 1, "accepted")
    inside = {one.name: one for one in traced.below(align)}
    assert {"registry.run", "align.learn", "align.judge", "registry.files"} < set(inside)
    commit = inside["registry.commit"]
    assert (commit.facts["r2m.parent"], commit.facts["r2m.live"]) == (0, 1)
    assert inside["align.learn"].facts["r2m.device_seconds"] > 0
    assert inside["align.learn"].end <= commit.start

    assert missing.error == calls["r2m GetRun"].error == "unknown_run"
    assert not score.error


def test_no_text_is_in_a_trace(traced):
    texts = {text for one in samples(1) for text in (one.prompt, one.response)}
    texts |= {one.response for group in groups(1) for one in group.samples}
    assert texts
    assert not [text for text in texts if text.encode() in traced.raw]


def test_without_a_collector_nothing_is_traced(reward_model, backbone, tmp_path):
    with running(reward_model, tmp_path, backbone=backbone) as server:
        assert server.parts.traces is None
        assert not [one for one in threading.enumerate() if "span" in one.name.lower()]
        answer = httpx.get(
            f"{server.urls['http']}/v1/server", headers={"traceparent": PARENT.format(sampled=1)}
        )
        assert answer.status_code == 200


@pytest.mark.parametrize(("sampled", "share", "seen"), [(1, 0.0, True), (0, 1.0, False)])
def test_the_client_decides_what_is_traced(reward_model, backbone, tmp_path, sampled, share, seen):
    with (
        collecting() as (url, found),
        running(
            reward_model, tmp_path, backbone=backbone, otlp_endpoint=url, otlp_share=share
        ) as server,
    ):
        headers = {"traceparent": PARENT.format(sampled=sampled), "x-request-id": "mine"}
        httpx.get(f"{server.urls['http']}/v1/server", headers=headers)
        httpx.get(f"{server.urls['http']}/livez", headers=headers)
        server.parts.traces.close(10)
    told = [(one.name, one.trace, one.parent, one.facts["r2m.request_id"]) for one in found.spans]
    assert told == ([("get_server", TRACE_ID, SPAN_ID, "mine")] if seen else [])


def test_each_sample_of_a_stream_is_a_span_of_its_own(reward_model, backbone, tmp_path):
    context = trace.SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), True, trace.TraceFlags(1))
    with (
        collecting() as (url, found),
        running(reward_model, tmp_path, backbone=backbone, otlp_endpoint=url) as server,
    ):
        with Client(server.urls["grpc"], wire_dtype="float32") as client:
            client.create_run("r", policy_hidden_size=WIDTH_P, method={"width": 16})
            with (
                trace.use_span(trace.NonRecordingSpan(context)),
                client.score_stream(run="r") as stream,
            ):
                for one in samples(1):
                    stream.send(one)
                stream.finish()
                assert len(list(stream)) == 4
        server.parts.traces.close(10)
    whole = next(one for one in found.spans if one.name == "score_stream")
    assert (whole.trace, whole.parent) == (TRACE_ID, SPAN_ID)
    parts = found.below(whole)
    assert [one.name for one in parts] == ["stream_sample"] * 4
    for one in parts:
        assert {"queue", "backbone", "head"} <= {inside.name for inside in found.below(one)}


@contextlib.contextmanager
def deaf():
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("collector", ["deaf", "absent"])
def test_a_collector_that_does_not_answer_holds_nobody_up(reward_model, tmp_path, collector):
    with deaf() as url:
        endpoint = url if collector == "deaf" else "http://127.0.0.1:9"
        server = Process(
            reward_model, tmp_path, "--otlp-endpoint", endpoint, "--drain-seconds", "1"
        ).wait_ready()
        try:
            with Client(server.http) as client:
                for _ in range(20):
                    client.server()
        finally:
            began = time.monotonic()
            code, output = server.end()
    assert code == 0, output
    assert time.monotonic() - began < 25
    assert "Traceback" not in output
    assert sum("opentelemetry" in line for line in output.splitlines()) <= 1


def test_a_missing_run_is_an_error_of_its_span_only(traced):
    """What a client was told by code stands there by code."""
    failed = [one for one in traced.spans if one.error]
    assert {one.error for one in failed} == {"unknown_run"}
    assert {one.facts["error.type"] for one in failed} == {"unknown_run"}
    assert NotFound.__name__ not in traced.raw.decode(errors="replace")


def test_the_page_has_every_span(traced):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    ours = {one.name for one in traced.spans if one.service == "r2m-serve" and one.kind == INSIDE}
    assert len(ours) >= 9
    assert {one for one in ours if f"`{one}`" not in page} == set()
