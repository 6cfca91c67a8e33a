from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport_fakes import WEIGHTS, FakeApplication, sample
from transport_wires import Failure, http_failure, serving

from r2m.errors import TABLE, Code, Problem
from r2m_service.transports.http.app import build_app

JSON = "application/json"
TENSORS = "application/x-safetensors"


async def test_all_routes_answer():
    async with serving() as wires:
        http, app = wires.http, wires.application
        body = {"run": "a", "policy": {"hidden_size": 4}}
        assert (await http.post("/v1/runs", json=body)).status_code == 201
        again = await http.post("/v1/runs", json=body)
        assert again.status_code == 200
        # A setting that is off is a setting: null stays among the settings.
        assert again.json()["method"]["max_grad_norm"] is None
        assert "origin_branch" not in again.json()["branches"][0]
        listed = (await http.get("/v1/runs")).json()
        assert [one["run"] for one in listed["runs"]] == ["a", "b"]
        assert (await http.get("/v1/runs/a")).json()["next_step"] == 3
        assert (await http.delete("/v1/runs/a")).json()["archived"] is True
        vanilla = (await http.post("/v1/score", json={"samples": [sample()]})).json()
        assert vanilla == {
            "fingerprint": "f" * 64,
            "scores": [{"id": "a", "reward": 0.25, "vanilla_reward": 0.0}],
        }
        scored = await http.post("/v1/runs/a/score", json={"samples": [], "head": 12})
        assert scored.json()["head"] == 0
        align = {"step": 3, "groups": [{"id": "g", "samples": [sample()]}]}
        assert (await http.post("/v1/runs/a/align", json=align)).json()["step"] == 3
        assert (await http.get("/v1/runs/a/heads")).json()["heads"][0]["head"] == 0
        assert (await http.get("/v1/runs/a/heads/7")).json()["head"] == 7
        alias = await http.put("/v1/runs/a/aliases/best", json={"head": 2, "expect": 1})
        assert alias.json() == {"run": "a", "alias": "best", "head": 2, "previous": 1}
        assert (await http.post("/v1/runs/a/rollback", json={"to": 1})).json()["run"] == "a"
        assert (await http.get("/v1/server")).json()["model"] == "m"
        names = [call[0] for call in app.calls]
        assert names == [
            "create_run", "create_run", "list_runs", "get_run", "archive_run", "score", "score",
            "align", "list_heads", "get_head", "set_alias", "rollback", "server",
        ]  # fmt: skip
        assert app.calls[6][2].head == 12


async def test_weights():
    async with serving() as wires:
        got = await wires.http.get("/v1/runs/a/heads/7/weights")
    assert got.content == WEIGHTS
    assert got.headers["content-type"] == TENSORS
    assert got.headers["etag"] == f'"{"a" * 64}"'
    assert got.headers["r2m-head"] == "7"
    assert got.headers["content-length"] == str(len(WEIGHTS))
    assert got.headers["content-disposition"] == 'attachment; filename="a-head-7.safetensors"'


async def test_liveness_and_readiness():
    async with serving() as wires:
        assert (await wires.http.get("/readyz")).json()["status"] == "ready"
        wires.application.ready = False
        assert (await wires.http.get("/livez")).status_code == 200
        refused = http_failure(await wires.http.get("/readyz"))
        assert (refused.status, refused.code, refused.pause) == (503, "not_ready", 5)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("POST", "/v1/runs/a/nothing", 404, "not_found"),
        ("GET", "/v1/runs/", 404, "not_found"),
        ("GET", "/v1/runs/a%2Fb/heads/x/y", 404, "not_found"),
        ("GET", "/v1/score", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/score", 405, "method_not_allowed"),
        ("PATCH", "/v1/runs", 405, "method_not_allowed"),
    ],
)
async def test_paths_that_are_not_there(method, path, status, code):
    async with serving() as wires:
        response = await wires.http.request(method, path)
        refused = http_failure(response)
        assert (refused.status, refused.code) == (status, code)
        assert ("allow" in response.headers) == (status == 405)
        assert not wires.application.calls


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/v1/score", {"content-type": "application/x-www-form-urlencoded"}, "unsupported_media"),
        ("/v1/score", {"content-type": "text/plain"}, "unsupported_media"),
        ("/v1/score", {"content-type": JSON, "content-encoding": "gzip"}, "unsupported_media"),
        ("/v1/score", {"content-type": TENSORS, "content-encoding": "br"}, "unsupported_media"),
        ("/v1/runs", {"content-type": TENSORS}, "unsupported_media"),
        ("/v1/score", {"content-type": JSON, "content-encoding": "identity"}, None),
        ("/v1/score", {"content-type": "Application/JSON; charset=utf-8"}, None),
        ("/v1/score", {"content-type": ""}, None),
        ("/v1/score", {}, None),
    ],
)
async def test_media_types(path, headers, code):
    async with serving() as wires:
        response = await wires.http.post(path, content=b'{"samples": []}', headers=headers)
    if code is None:
        assert response.status_code == 200
    else:
        refused = http_failure(response)
        assert (refused.code, refused.status) == (code, 415)


async def test_bodies_are_bounded_before_and_while_they_are_read():
    pulled = 0

    async def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield b" " * 100

    async with serving(max_bytes=1000) as wires:
        refused = http_failure(await wires.http.post("/v1/score", content=b" " * 1001))
        assert (refused.code, refused.status) == ("too_large", 413)
        refused = http_failure(await wires.http.post("/v1/score", content=endless()))
        assert (refused.code, refused.status) == ("length_required", 411)
        assert pulled == 0
        declared = {"content-length": str(10**30)}
        refused = http_failure(
            await wires.http.post("/v1/score", content=endless(), headers=declared)
        )
        assert (refused.code, pulled) == ("too_large", 0)
        body = b'{"samples": []}'.ljust(1000)
        assert (await wires.http.post("/v1/score", content=body)).status_code == 200


async def test_a_body_that_pauses_is_given_up():
    async def stuck():
        yield b"{"
        await asyncio.sleep(30)

    async with serving(idle_seconds=0.05) as wires:
        declared = {"content-length": "100"}
        refused = http_failure(
            await wires.http.post("/v1/score", content=stuck(), headers=declared)
        )
    assert (refused.code, refused.status) == ("deadline_exceeded", 504)


@pytest.mark.parametrize("error", [RuntimeError("secret"), OSError("disk"), MemoryError()])
async def test_our_own_bugs_are_logged_and_answered_as_compute_failed(error, caplog):
    async with serving() as wires:
        wires.application.error = error
        with caplog.at_level(logging.ERROR):
            refused = http_failure(await wires.http.get("/v1/runs/a"))
    assert (refused.code, refused.status) == ("compute_failed", 503)
    assert "secret" not in refused.message
    assert "GET '/v1/runs/a'" in caplog.text
    assert type(error).__name__ in caplog.text


async def test_work_cancelled_inside_the_server_is_not_ready():
    async with serving() as wires:
        wires.application.error = asyncio.CancelledError()
        for path in ("/v1/score", "/v1/runs/a/rollback"):
            body = {"samples": []} if path == "/v1/score" else {"to": 1}
            refused = http_failure(await wires.http.post(path, json=body))
            assert (refused.code, refused.status) == ("not_ready", 503)


async def asgi(
    app,
    *,
    body: list[bytes],
    then: asyncio.Event | None = None,
    path="/v1/score",
    declared: int | None = 100,
):
    """A POST by hand, whose client hangs up after the body's pieces, or when `then` is set."""
    length = [] if declared is None else [(b"content-length", str(declared).encode())]
    sent: list[dict] = []
    pieces = list(body)

    async def receive():
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or not then}
        if then is not None:
            await then.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "headers": length, "client": ("c", 1),
        "server": ("s", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def test_a_body_that_nobody_announced_is_refused_at_its_first_piece():
    """As a gateway that speaks HTTP/2 may pass it on: no Content-Length, and no chunks either."""
    application = FakeApplication()
    app = build_app(application, max_body_bytes=1000)
    start, body = await asgi(app, body=[b'{"samples":[]}'], declared=None)
    assert start["status"] == 411
    assert b"length_required" in body["body"]
    assert not application.calls


async def test_a_client_that_hangs_up_while_it_sends():
    application = FakeApplication()
    app = build_app(application, max_body_bytes=1000)
    assert await asgi(app, body=[b'{"sam']) == []
    assert not application.calls


async def test_a_client_that_hangs_up_while_it_waits_gives_up_its_score():
    application = FakeApplication()
    application.score_seconds = 30
    app = build_app(application, max_body_bytes=1000)
    assert await asgi(app, body=[b'{"samples":[]}'], then=application.begun) == []
    assert application.cancelled == ["score"]


async def test_a_client_that_hangs_up_does_not_stop_its_align():
    application = FakeApplication()
    application.align_seconds = 0.02
    app = build_app(application, max_body_bytes=1000)
    body = b'{"step": 1, "groups": [{"id": "g", "samples": []}]}'
    await asgi(app, body=[body], then=application.begun, path="/v1/runs/a/align")
    assert application.cancelled == []


@pytest.mark.parametrize("code", list(Code))
async def test_every_code_comes_with_its_status(code):
    async with serving() as wires:
        wires.application.error = Problem(code, "so “it” is", field="a[0].b")
        for refused in (
            await wires.over_http("GET", "/v1/runs/a"),
            await wires.over_http("POST", "/v1/score", json={"samples": []}),
        ):
            assert isinstance(refused, Failure)
            row = TABLE[code]
            assert refused.code == code.value
            assert (refused.status, refused.retryable) == (row.http, row.retryable)
            assert (refused.message, refused.field) == ("so “it” is", "a[0].b")
            assert (refused.pause is not None) == row.retryable


PATHS = ["/v1/score", "/v1/runs", "/v1/runs/a/score", "/v1/runs/a/align", "/v1/runs/a/rollback"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(PATHS),
    media=st.sampled_from([JSON, TENSORS]) | st.text("abc/;=", max_size=8),
    body=st.binary(max_size=200)
    | st.builds(
        lambda size, rest: size.to_bytes(8, "little") + rest,
        st.integers(0, 300),
        st.binary(max_size=200),
    )
    | st.text('{}[]":,samplesid0123', max_size=40).map(str.encode),
)
def test_any_bytes_get_an_answer_of_the_documented_form(path, media, body, runner):
    async def call():
        response = await runner.wires.http.post(path, content=body, headers={"content-type": media})
        if not response.is_success:
            refused = http_failure(response)
            assert refused.status < 500
            assert refused.code in {"invalid_request", "unsupported_media", "too_large"}

    runner.run(call())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"]),
    path=st.lists(
        st.sampled_from(["v1", "runs", "heads", "weights", "score", "..", "%00", "%ff", "aliases"])
        | st.text(max_size=4),
        max_size=6,
    ).map(lambda parts: "/" + "/".join(parts)),
)
def test_any_path_gets_an_answer_of_the_documented_form(method, path, runner):
    async def call():
        try:
            request = runner.wires.http.build_request(method, path)
        except Exception:  # the client library refuses some texts as a URL
            return
        response = await runner.wires.http.send(request)
        if not response.is_success and method != "HEAD":
            assert http_failure(response).status < 500

    runner.run(call())


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/runs/a/health"])
async def test_head_asks_a_probe(path):
    async def scrape(accept):
        return b"text", "text/plain"

    async with serving(scrape=scrape) as wires:
        asked, got = await wires.http.head(path), await wires.http.get(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-length"] == str(len(got.content))
        wires.application.ready = False
        ready = 200 if path in ("/livez", "/metrics") else 503
        assert (await wires.http.head(path)).status_code == ready
        assert (await wires.http.head("/v1/score")).status_code == 405


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/get_rewards", "POST /get_reward"),
        ("/getreward", "POST /get_reward"),
        ("/runs/mine/get_rewards", "POST /runs/{run}/get_reward"),
        ("/v1/runs/mine/scores", "POST /v1/runs/{run}/score"),
        ("/v1/model", "GET /v1/models"),
        ("/v1/runs/mine/head/3", "GET /v1/runs/{run}/heads/{head}"),
        ("/healthz", "GET /health"),
        ("/pooling", "POST /classify"),
        ("/runs/mine/pooling", "POST /classify"),
        ("/score", "POST /v1/score"),
        ("/rerank", "POST /v1/score"),
        ("/v1/rerank", "POST /v1/score"),
        ("/v2/rerank", "POST /v1/score"),
        ("/v1/classify", "POST /classify"),
        ("/v2/health/ready", "GET /readyz"),
        ("/v2/models/reward_model/infer", "POST /v1/score"),
        ("/v2/models/reward_model/ready", "GET /readyz"),
        ("/v2/repository/index", "KServe's v2 protocol"),
    ],
)
async def test_a_path_that_is_not_there_names_the_route_that_is(path, says):
    async with serving() as wires:
        refused = http_failure(await wires.http.post(path, json={}))
    assert (refused.code, refused.status) == ("not_found", 404)
    assert says in refused.message
    assert refused.message.endswith("/openapi.json lists all of them")


@pytest.mark.parametrize("path", ["/nothing-of-the-kind", f"/{'x' * 5000}"])
async def test_a_path_that_is_like_none_gets_no_guess(path):
    async with serving() as wires:
        refused = http_failure(await wires.http.post(path, json={}))
    assert refused.message == "there is no such path: /openapi.json lists all of them"


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "text_1": "a", "text_2": ["b"]},
        {"model": "m", "queries": ["a"], "documents": ["b"]},
        {"query": "a", "items": ["b"], "label_token_ids": [1]},
    ],
)
async def test_pairs_of_texts_are_told_where_to_go(body):
    """vLLM and SGLang have /v1/score, too, and score pairs of texts there."""
    async with serving() as wires:
        refused = http_failure(await wires.http.post("/v1/score", json=body))
        assert (refused.code, refused.status) == ("invalid_request", 400)
        for words in ("pairs of texts", "samples", "POST /classify"):
            assert words in refused.message
        # A typo is still a typo.
        refused = http_failure(await wires.http.post("/v1/score", json={"sample": []}))
        assert refused.field == "samples"
