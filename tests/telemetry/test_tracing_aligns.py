"""Aligns whose work outlasts the call that began it: split ones, and those that are given up."""

import asyncio
import contextlib
import json
import logging
import time

import pytest
from opentelemetry import trace
from support.collector import collecting
from support.rollouts import WIDTH_P, groups
from support.serving import running

from r2m.errors import Code, Problem
from r2m_client import Client, DeadlineError
from r2m_service.application.dialogue import Dialogue
from r2m_service.logs import JsonLines, add_known

TRACE = 0x0AF7651916CD43DD8448EB211C80319C


@pytest.fixture
def traced(reward_model, backbone, tmp_path):
    """(server, collector's spans once the server's traces are closed)"""
    with (
        collecting() as (url, found),
        running(reward_model, tmp_path, backbone=backbone, otlp_endpoint=url) as server,
    ):

        def spans(awaited=None):
            # An answer is with its caller a moment before the call's span ends.
            until = time.monotonic() + 10
            while awaited and time.monotonic() < until:
                server.parts.traces._provider.force_flush()
                if any(one.name == awaited for one in found.spans):
                    break
                time.sleep(0.02)
            server.parts.traces.close(10)
            return found

        yield server, spans


@pytest.fixture
def lines(caplog):
    """What is logged, with the facts of its call."""
    caplog.handler.addFilter(add_known)
    caplog.set_level(logging.INFO, "r2m")
    yield caplog
    caplog.handler.removeFilter(add_known)


@contextlib.contextmanager
def within(trace_id):
    context = trace.SpanContext(trace_id, 0xB7AD6B7169203331, True, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        yield


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_last_reply_of_a_split_align_has_its_update(traced, transport, lines):
    server, spans = traced
    with Client(server.urls[transport], wire_dtype="float32") as client, within(TRACE):
        client.create_run("r", policy_hidden_size=WIDTH_P, method={"width": 16})
        batch = groups(1)
        scored = client.score(
            [one for group in batch for one in group.samples], run="r", feedback="split"
        )
        answer = client.align("r", step=1, groups=batch, feedback="split", context=scored.context)
    assert answer.verdict == "accepted"
    found = spans("reply_align")
    replies = [one for one in found.spans if one.name == "reply_align"]
    assert replies
    last = max(replies, key=lambda one: one.end)
    assert last.facts["r2m.verdict"] == "accepted"
    assert (last.facts["r2m.step"], last.facts["r2m.head"]) == (1, 1)
    inside = {one.name: one for one in found.below(last)}
    assert {"align.judge", "registry.commit"} <= set(inside)
    commits = [one for one in found.spans if one.name == "registry.commit"]
    assert len(commits) == 1
    assert f"{TRACE:032x}" == commits[0].trace
    (line,) = [one for one in lines.records if one.facts.get("verdict")]
    assert line.facts["method"] == "reply_align"
    assert (line.facts["run"], line.facts["step"], line.facts["head"]) == ("r", 1, 1)


def test_an_align_that_was_given_up_tells_what_came_of_it(traced, lines):
    """Its call is over and has its line: this one is of the work that went on."""
    server, _ = traced
    big = groups(1, count=30, size=8)
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        for patience in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            run = f"r-{patience}"
            client.create_run(run, policy_hidden_size=WIDTH_P, method={"width": 16})
            with (
                Client(server.urls["grpc"], wire_dtype="float32", timeout=patience) as hasty,
                contextlib.suppress(DeadlineError),
            ):
                hasty.align(run, step=1, groups=big)
                continue
            deadline = time.monotonic() + 5
            while client.run(run).step == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            if client.run(run).step == 1:
                break
        else:
            raise AssertionError("no align whose caller gave up was finished")
    deadline = time.monotonic() + 5
    told = []
    while not told and time.monotonic() < deadline:
        told = [one for one in lines.records if "went on without its caller" in one.getMessage()]
        time.sleep(0.02)
    (line,) = [one for one in told if one.facts["run"] == run]
    assert line.getMessage().endswith(": accepted")
    assert (line.facts["step"], line.facts["head"]) == (1, 1)
    assert line.facts["request_id"]
    assert json.dumps(line.facts)


@pytest.mark.parametrize(
    ("error", "level"),
    [(Problem(Code.STORAGE_FAILED, "disk"), "info"), (ZeroDivisionError("a text"), "error")],
)
def test_what_an_align_without_a_caller_failed_of_is_told(lines, error, level):
    async def fails():
        raise error

    async def work():
        dialogue = Dialogue("r", 7, 1.0)
        dialogue.task = asyncio.ensure_future(fails())
        dialogue.task.add_done_callback(dialogue.concluded)
        await asyncio.wait({dialogue.task})
        await asyncio.sleep(0)

    asyncio.run(work())
    (line,) = lines.records
    assert (line.levelname.lower(), line.facts["step"]) == (level, 7)
    assert (line.exc_info is None) is (level == "info")
    assert "a text" not in JsonLines(False).format(line)


def test_an_align_that_somebody_waits_for_is_told_by_their_line(lines):
    async def fails():
        await asyncio.sleep(0.01)
        raise Problem(Code.STORAGE_FAILED, "disk")

    async def work():
        dialogue = Dialogue("r", 7, 1.0)
        dialogue.task = asyncio.ensure_future(fails())
        dialogue.task.add_done_callback(dialogue.concluded)
        with pytest.raises(Problem):
            await dialogue.next()

    asyncio.run(work())
    assert lines.records == []
