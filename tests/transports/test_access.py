"""Who may call what, over both transports: every method and route, every way to have no right."""

from __future__ import annotations

import base64
import contextlib
import re
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from fastapi.routing import APIRoute
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from transport_fakes import FakeApplication
from transport_wires import SERVICE, Failure, grpc_failure, serving

from r2m.v1 import r2m_pb2 as pb
from r2m_service.domain.access import Key, Scope, digest, id_of, new_text
from r2m_service.transports.access import OF_METHOD, OF_ROUTE, OPERATIONS, Gate
from r2m_service.transports.http.app import build_app
from r2m_service.transports.http.ops import build_ops
from r2m_service.transports.limits import ByteBudget, RequestLimit

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
METHODS = pb.DESCRIPTOR.services_by_name["RewardModelService"].methods_by_name
GIVEN = {"run": "theirs", "head": "0", "alias": "mine", "ticket": "t", "rollout": "7-2"}


class Ring:
    """Keys of every kind."""

    def __init__(self):
        self.keys, self.texts = {}, {}
        for name, scope, more in (
            ("score", Scope.SCORE, {}),
            ("align", Scope.ALIGN, {}),
            ("admin", Scope.ADMIN, {}),
            ("bound", Scope.ADMIN, {"runs": frozenset({"a"})}),
            ("old", Scope.ADMIN, {"expires_at": NOW}),
            ("gone", Scope.ADMIN, {"revoked_at": NOW - timedelta(days=1)}),
        ):
            identity, text = new_text()
            rest = {"runs": None, **more}
            self.keys[identity] = Key(identity, name, scope, digest=digest(text),
                                      created_at=NOW - timedelta(days=9), **rest)  # fmt: skip
            self.texts[name] = text

    def find(self, identity):
        return self.keys.get(identity)


RING = Ring()
WRONG = f"r2m_{id_of(RING.texts['admin'])}_{'0' * 64}"


def bearer(name):
    return {"authorization": f"Bearer {RING.texts.get(name, name)}"}


async def scrape(accept):
    return b"", "text/plain"


@contextlib.asynccontextmanager
async def guarded():
    async with serving(gate=Gate(RING, now=lambda: NOW), scrape=scrape) as wires:
        yield wires


def routes(app):
    """All routes, however the framework nests them; what is no route of ours as it is."""
    found = []
    waiting = list(app.routes)
    while waiting:
        one = waiting.pop()
        inner = getattr(one, "original_router", None)
        if inner is None:
            found.append(one)
        else:
            waiting += inner.routes
    return found


def test_every_route_and_every_method_has_a_scope():
    app = build_app(FakeApplication(), max_body_bytes=1, scrape=scrape)
    of_app = routes(app)
    # A plain route, or an application mounted, would pass by the door.
    assert all(isinstance(one, APIRoute) for one in of_app)
    assert sorted(one.name for one in of_app) == sorted(OF_ROUTE)
    ours = {f"/{SERVICE}/{name}" for name in METHODS}
    assert ours == {name for name in OF_METHOD if name.startswith("/r2m.")}
    assert sum(len(one.grpc) for one in OPERATIONS) == len(OF_METHOD)
    assert sum(len(one.http) for one in OPERATIONS) == len(OF_ROUTE)
    # Free is what probes ask, and nothing else.
    free = {name for one in OPERATIONS if one.scope is None for name in (*one.grpc, *one.http)}
    assert free == {
        "livez", "readyz", "health", "health_of_run", "index", "file",
        "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
    }  # fmt: skip


def calls_over_http():
    """(route's name, verb, path) of all, with the run `theirs` where there is one."""
    app = build_app(FakeApplication(), max_body_bytes=1, scrape=scrape)
    return [
        (one.name, verb, re.sub(r"{(\w+)}", lambda found: GIVEN[found[1]], one.path))
        for one in routes(app)
        for verb in one.methods
    ]


HTTP = calls_over_http()


def smaller(scope):
    """The key of the largest scope below."""
    order = list(Scope)
    return str(order[order.index(scope) - 1]) if order.index(scope) else None


@pytest.mark.parametrize(("name", "verb", "path"), HTTP, ids=[name for name, _, _ in HTTP])
async def test_a_route_takes_its_scope_and_no_less(name, verb, path):
    scope = OF_ROUTE[name].scope
    async with guarded() as wires:
        bare = await wires.http.request(verb, path)
        if scope is None:
            assert bare.status_code == (404 if name == "file" else 200)
            return
        assert bare.status_code == 401
        assert bare.headers["www-authenticate"] == 'Bearer realm="r2m"'
        assert bare.json()["error"]["code"] == "unauthenticated"
        if less := smaller(scope):
            refused = await wires.http.request(verb, path, headers=bearer(less))
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "forbidden"
            assert f"takes {scope}" in refused.json()["error"]["message"]
        if "theirs" in path:
            refused = await wires.http.request(verb, path, headers=bearer("bound"))
            assert refused.status_code == 403
            assert refused.json()["error"]["field"] == "run"
        # Nothing of it came to the application, not even the question whether there is room.
        assert wires.application.calls == []
        # What the call itself lacks is found only now.
        good = await wires.http.request(verb, path, headers=bearer(str(scope)))
        assert good.status_code not in (401, 403)


@pytest.mark.parametrize("name", METHODS)
async def test_a_method_takes_its_scope_and_no_less(name):
    scope = OF_METHOD[f"/{SERVICE}/{name}"].scope
    async with guarded() as wires:
        assert (await ask(wires, name, None)).code == "unauthenticated"
        if less := smaller(scope):
            refused = await ask(wires, name, less)
            assert (refused.code, refused.status) == (
                "forbidden", grpc.StatusCode.PERMISSION_DENIED
            )  # fmt: skip
        if "run" in fields(name):
            assert (await ask(wires, name, "bound")).field == "run"
        assert wires.application.calls == []
        good = await ask(wires, name, str(scope))
        assert not (isinstance(good, Failure) and good.code in ("unauthenticated", "forbidden"))


def fields(name):
    found = METHODS[name].input_type.fields_by_name
    inner = [one.message_type for one in found.values() if one.name in ("request", "open")]
    return inner[0].fields_by_name if inner else found


async def ask(wires, name, key):
    """One call for the run `theirs`; its failure, or anything else."""
    message = METHODS[name].input_type._concrete_class()
    given = {one: "theirs" for one in ("run",) if one in fields(name)}
    inner = next((one for one in ("request", "open") if hasattr(message, one)), None)
    place = message if inner is None else getattr(message, inner)
    place.SetInParent()
    for one, value in given.items():
        setattr(place, one, value)
    metadata = tuple(((key and bearer(key)) or {}).items())
    method, raw = METHODS[name], message.SerializeToString()
    # As stubs call it: a client that writes a stream while its call ends may miss the status.
    opened = {
        (False, False): wires.channel.unary_unary,
        (False, True): wires.channel.unary_stream,
        (True, True): wires.channel.stream_stream,
    }[method.client_streaming, method.server_streaming](f"/{SERVICE}/{name}")
    call = opened(iter([raw]) if method.client_streaming else raw, metadata=metadata, timeout=10)
    try:
        return [one async for one in call] if method.server_streaming else [await call]
    except grpc.aio.AioRpcError as error:
        return grpc_failure(error)


@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        (None, "with an API key alone"),
        ("", "the Authorization header is none"),
        ("Bearer", "the Authorization header is none"),
        ("Basic ###", "the Authorization header is none"),
        ("Digest x", "the Authorization header is none"),
        ("Bearer hello", "none of this server's"),
        ("Bearer r2m_", "none of this server's"),
        ("Bearer r2m_ffffffff_" + "0" * 64, "none of this server's"),
        (f"Bearer {WRONG}", "none of this server's"),
        (f"Bearer {RING.texts['admin'][:-1]}", "none of this server's"),
        (f"Bearer {RING.texts['admin']}0", "none of this server's"),
        (f"Bearer {RING.texts['old']}", "expired at 2026-05-04T12:00:00Z"),
        (f"Bearer {RING.texts['gone']}", "revoked at 2026-05-03T12:00:00Z"),
        (f"Bearer {WRONG.replace(id_of(WRONG), id_of(RING.texts['gone']))}", "none of this"),
    ],
    ids=range(14),
)
async def test_what_opens_nothing_is_refused_alike_and_never_repeated(authorization, says):
    headers = {} if authorization is None else {"authorization": authorization}
    async with guarded() as wires:
        over_http = await wires.over_http("GET", "/v1/runs", headers=headers)
        try:
            await wires.stub.ListRuns(pb.ListRunsRequest(), metadata=tuple(headers.items()))
            raise AssertionError("let in")
        except grpc.aio.AioRpcError as error:
            over_grpc = grpc_failure(error)
        for found in (over_http, over_grpc):
            assert found.code == "unauthenticated"
            assert says in found.message
            assert found.retryable is False
            given = (authorization or "").partition(" ")[2]
            assert len(given) < 5 or given not in found.message
        assert over_http.message == over_grpc.message
        assert over_grpc.status is grpc.StatusCode.UNAUTHENTICATED
        assert wires.application.calls == []


async def test_nothing_is_read_or_reserved_for_who_has_no_key():
    # A body of twice what may be in flight would be `too_large`, an odd one `unsupported_media`.
    async with serving(gate=Gate(RING), budget=ByteBudget(100), requests=RequestLimit(0)) as wires:
        body = {"content": b"x" * 200, "headers": {"content-encoding": "gzip"}}
        assert (await wires.over_http("POST", "/v1/score", **body)).code == "unauthenticated"
        found = await wires.raw("Score", b"\xff" * 200)
        assert found.code == "unauthenticated"


async def test_who_is_refused_takes_no_room_from_others():
    # Nothing is free: so nothing is read of the stream, and its end is told all the same.
    budget = ByteBudget(1 << 20)
    async with serving(gate=Gate(RING), budget=budget) as wires:
        async with budget.hold(1, wait=False):
            part = pb.AlignStreamRequest(request=pb.AlignRequest(run="a", step=1))
            _, failure = await wires.stream(part)
            assert failure.code == "unauthenticated"
            assert budget.used == 1
        assert budget.used == 0


async def test_a_long_upload_without_a_key_hears_why():
    async with guarded() as wires:
        part = pb.AlignStreamRequest(request=pb.AlignRequest(run="a", step=1))
        chunk = pb.AlignStreamRequest(chunk=pb.Chunk(id="x", data=b"x" * (1 << 20)))
        _, failure = await wires.stream(part, *[chunk] * 40)
        assert failure.code == "unauthenticated"


async def test_a_key_may_be_the_password_of_a_url():
    text = base64.b64encode(f"anyone:{RING.texts['score']}".encode()).decode()
    async with guarded() as wires:
        found = await wires.http.get("/v1/runs", headers={"authorization": f"basic {text}"})
        assert found.status_code == 200


async def test_a_bound_key_sees_and_makes_its_runs_alone():
    headers = bearer("bound")
    metadata = tuple(headers.items())
    async with guarded() as wires:
        listed = await wires.over_http("GET", "/v1/runs", headers=headers)
        assert [one["run"] for one in listed["runs"]] == ["a"]
        listed = await wires.stub.ListRuns(pb.ListRunsRequest(), metadata=metadata)
        assert [one.run for one in listed.runs] == ["a"]
        for name, code in (("b", "forbidden"), ("a", None)):
            body = {"run": name, "feedback": "none"}
            made = await wires.over_http("POST", "/v1/runs", json=body, headers=headers)
            assert getattr(made, "code", None) == code
            with contextlib.suppress(grpc.aio.AioRpcError):
                made = await wires.stub.CreateRun(
                    pb.CreateRunRequest(run=name, feedback="none"), metadata=metadata
                )
                assert code is None
        assert [call[1].run for call in wires.application.calls if call[0] == "create_run"] == [
            "a", "a"
        ]  # fmt: skip
        # Rewards of the frozen model are in every answer of its run anyway.
        sample = {"samples": [{"id": "x", "prompt": "p", "response": "r"}]}
        assert "scores" in await wires.over_http("POST", "/v1/score", json=sample, headers=headers)


@pytest.mark.parametrize("run", ["a", "b"])
async def test_trainers_routes_at_the_root_are_those_of_the_run_behind_them(run):
    async with serving(gate=Gate(RING, now=lambda: NOW), compat_run=run) as wires:
        body = {"query": ["text"], "prompts": ["p"]}
        found = await wires.http.post("/get_reward", json=body, headers=bearer("bound"))
        assert (found.status_code == 403) == (run == "b")
        # Also with a rollout's name before the path, and a slash behind it.
        for path in ("/ng-rollout/7-2/seed_session", "/seed_session/"):
            found = await wires.http.post(path, json={}, headers=bearer("bound"))
            assert (found.status_code == 403) == (run == "b")
            assert (await wires.http.post(path, json={})).status_code == 401


async def test_who_trains_may_not_move_what_it_is_measured_against():
    async with guarded() as wires:
        for alias, key, allowed in (
            ("mine", "align", True), ("reference", "align", False), ("reference", "admin", True)
        ):  # fmt: skip
            path = f"/v1/runs/a/aliases/{alias}"
            found = await wires.over_http("PUT", path, json={"head": 1}, headers=bearer(key))
            assert isinstance(found, Failure) != allowed
            message = pb.SetAliasRequest(run="a", alias=alias, head=1)
            try:
                await wires.stub.SetAlias(message, metadata=tuple(bearer(key).items()))
                assert allowed
            except grpc.aio.AioRpcError as error:
                assert not allowed
                assert grpc_failure(error).field == "alias"


async def test_probes_need_no_key_and_reflection_does():
    async with guarded() as wires:
        assert (await wires.http.get("/livez")).status_code == 200
        assert (await wires.http.get("/readyz")).status_code == 200
        assert (await wires.http.get("/openapi.json")).status_code == 401
        assert (await wires.http.get("/openapi.json", headers=bearer("score"))).json()["paths"]
        health = health_pb2_grpc.HealthStub(wires.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(wires.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [one async for one in reflection.ServerReflectionInfo(iter([asked]))]
        assert grpc_failure(caught.value).code == "unauthenticated"
        metadata = tuple(bearer("score").items())
        told = [
            one async for one in reflection.ServerReflectionInfo(iter([asked]), metadata=metadata)
        ]
        assert told[0].list_services_response.service


async def test_unknown_paths_and_methods_are_named_as_such():
    async with guarded() as wires:
        assert (await wires.over_http("GET", "/v2")).code == "not_found"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wires.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_route_that_the_table_does_not_know_is_closed():
    gate = Gate(RING, now=lambda: NOW)
    with pytest.raises(Exception, match="takes no key's"):
        gate.admit(None, f"Bearer {RING.texts['admin']}")
    Gate(None).admit(None, None)


async def test_probes_on_an_address_of_their_own():
    app = FakeApplication()
    main = build_app(app, max_body_bytes=1, probes=False)
    assert {"livez", "readyz"}.isdisjoint(one.name for one in routes(main))
    ops = build_ops(app, budget=ByteBudget(), requests=RequestLimit())
    assert {one.name for one in routes(ops)} == {"livez", "readyz"}


def test_the_document_says_which_key_an_operation_takes():
    document = build_app(FakeApplication(), max_body_bytes=1).openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for methods in document["paths"].values():
        for one in methods.values():
            scope = OF_ROUTE[one["operationId"]].scope
            wanted = None if scope is None else [{"key": [scope]}, {}]
            assert one.get("security") == wanted
            assert (scope is None) != ({"401", "403"} <= set(one["responses"]))
