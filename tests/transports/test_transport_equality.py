"""The same mistake ends the same way over HTTP and gRPC: code, sentence and field."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from transport_fakes import sample
from transport_wires import Failure, serving

from r2m.errors import TABLE, Code
from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.grpc.methods import UNARY

S, A, R = "/v1/runs/x/score", "/v1/runs/x/align", "/v1/runs"


def groups(*samples: dict, **more) -> dict:
    return {"step": 1, "groups": [{"id": "g", "samples": list(samples), **more}]}


FEEDBACK = {"dtype": "bfloat16", "shape": [1, 4]}
ID = "samples[0].id"

# What is sent, over which route, and the field to blame. The gRPC message is made of the same body.
MISTAKES: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST " + S, "Score", {"samples": [sample("")]}, ID),
    ("POST " + S, "Score", {"samples": [sample("x" * 257)]}, ID),
    ("POST " + S, "Score", {"samples": [sample(format="xml")]}, "samples[0].format"),
    ("POST " + S, "Score",
     {"samples": [sample(feedback={**FEEDBACK, "hidden_state": "mid"})]},
     "samples[0].feedback.hidden_state"),
    ("POST " + A, "Align", {**groups(), "step": 0}, "step"),
    ("POST " + A, "Align", {**groups(), "step": -1}, "step"),
    ("POST " + A, "Align", {**groups(), "step": 2**31}, "step"),
    ("POST " + A, "Align", {"step": 1, "groups": [{"id": "", "samples": []}]}, "groups[0].id"),
    ("POST " + A, "Align", groups(sample("")), "groups[0].samples[0].id"),
    ("POST " + A, "Align", groups(preferred=["a", "b", "c"]), "groups[0].preferred"),
    ("POST " + R, "CreateRun", {"run": "no spaces"}, "run"),
    ("POST " + R, "CreateRun", {"run": "a", "feedback": "mine"}, "feedback"),
    ("POST " + R, "CreateRun", {"run": "a", "policy": {"hidden_size": 0}}, "policy.hidden_size"),
    ("POST " + R, "CreateRun", {"run": "a", "policy": {"hidden_state": "y"}},
     "policy.hidden_state"),
    ("PUT /v1/runs/x/aliases/b", "SetAlias", {"head": -1}, "head"),
    ("PUT /v1/runs/x/aliases/b", "SetAlias", {"head": 2**31}, "head"),
    ("PUT /v1/runs/x/aliases/b", "SetAlias", {}, "head"),
    ("PUT /v1/runs/x/aliases/b", "SetAlias", {"head": 1, "expect": -1}, "expect"),
    ("POST /v1/runs/x/rollback", "Rollback", {"to": -1}, "to"),
    ("POST /v1/runs/x/rollback", "Rollback", {"to": 1, "reason": "x" * 1001}, "reason"),
]  # fmt: skip


def message_of(method: str, body: dict[str, Any], **more: Any) -> Any:
    kind: Any = UNARY[method].request
    return kind(**body, **more)


@pytest.mark.parametrize(("route", "method", "body", "field"), MISTAKES)
async def test_equal_mistakes_get_equal_errors(route, method, body, field):
    verb, path = route.split(" ")
    more = {} if method == "CreateRun" else {"run": "x"}
    if method == "SetAlias":
        more["alias"] = "b"
    async with serving() as wires:
        one = await wires.over_http(verb, path, json=body)
        two = await wires.over_grpc(method, message_of(method, body, **more))
        assert isinstance(one, Failure)
        assert isinstance(two, Failure)
        assert one.code == two.code == "invalid_request"
        assert one.field == two.field == field
        assert one.message == two.message
        row = TABLE[Code(one.code)]
        assert (one.status, two.status.name) == (row.http, row.grpc)
        assert not wires.application.calls


@pytest.mark.parametrize(
    ("route", "method", "body", "field"),
    [
        # gRPC cannot leave these out: there they are empty, which is refused with the same code.
        ("POST " + S, "Score", {"samples": [{"prompt": "p", "response": "r"}]}, ID),
        ("POST " + A, "Align", {"groups": []}, "step"),
        ("POST " + A, "Align", {"step": 1, "groups": [{"samples": []}]}, "groups[0].id"),
        ("POST " + R, "CreateRun", {}, "run"),
    ],
)
async def test_absent_and_empty_end_in_the_same_code(route, method, body, field):
    verb, path = route.split(" ")
    more = {} if method == "CreateRun" else {"run": "x"}
    async with serving() as wires:
        one = await wires.over_http(verb, path, json=body)
        two = await wires.over_grpc(method, message_of(method, body, **more))
        for failure in (one, two):
            assert isinstance(failure, Failure)
            assert (failure.code, failure.field) == ("invalid_request", field)
        assert not wires.application.calls


async def test_vanilla_scoring_takes_no_head():
    async with serving() as wires:
        body = {"samples": [], "head": "live"}
        one = await wires.over_http("POST", "/v1/score", json=body)
        two = await wires.over_grpc("Score", pb.ScoreRequest(head="live"))
        assert isinstance(one, Failure)
        assert isinstance(two, Failure)
        assert (one.code, one.field, one.message) == (two.code, two.field, two.message)


async def test_equal_requests_reach_the_application_equal():
    data = bytes(range(8))
    body: dict[str, Any] = groups(
        sample("a", feedback={**FEEDBACK, "tokens": 1, "last_token": False}),
        sample("b", format="raw", group="g"),
        preferred=["a", "b"],
    )
    message = pb.AlignRequest(run="x", branch="main", **body)
    message.groups[0].samples[0].feedback.data = data
    body["branch"] = "main"
    body["groups"][0]["samples"][0]["feedback"]["data"] = base64.b64encode(data).decode()
    async with serving() as wires:
        await wires.over_http("POST", A, json=body)
        await wires.over_grpc("Align", message)
        (_, _, one), (_, _, two) = wires.application.calls
    one.groups[0].samples[0].feedback.data = data
    two.groups[0].samples[0].format = "chat"  # "" over gRPC: the same
    assert one == two


async def test_what_is_one_samples_matter_passes_both_transports():
    odd = [
        sample("a", feedback={"dtype": "int4", "shape": [1]}),
        sample("b", feedback={"dtype": "", "shape": []}),
        {"id": "c", "prompt": "", "response": ""},
    ]
    async with serving() as wires:
        await wires.over_http("POST", S, json={"samples": odd})
        await wires.over_grpc("Score", pb.ScoreRequest(run="x", samples=odd))
        (_, _, one), (_, _, two) = wires.application.calls
    for left, right in zip(one.samples, two.samples, strict=True):
        assert (left.id, left.prompt, left.response) == (right.id, right.prompt, right.response)
        if left.feedback is not None:
            assert left.feedback.dtype == right.feedback.dtype
            assert left.feedback.shape == right.feedback.shape
