"""Every code of the table, and what is no answer of ours, over both transports."""

import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import grpc
import httpx
import pytest
from client_servers import Refuse
from google.rpc import error_details_pb2, status_pb2

import r2m_client
from r2m.errors import TABLE, Code, Problem
from r2m_client import (
    AlignConflict,
    ConnectError,
    DeadlineError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProtocolError,
    R2MError,
    SampleProblem,
    ServerDeadline,
    ServerError,
    StepConflict,
    Unavailable,
    _errors,
)
from r2m_client._grpc_wire import grpc_failure
from r2m_client._http import http_failure, retry_after


def test_every_code_has_a_class():
    assert set(_errors.CLASSES) == set(TABLE)


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (Code.INVALID_REQUEST, (InvalidRequest, ValueError)),
        (Code.TOO_LARGE, (InvalidRequest,)),
        (Code.UNKNOWN_HEAD, (NotFound, LookupError)),
        (Code.STEP_CONFLICT, (StepConflict, r2m_client.Conflict)),
        (Code.STEP_OUT_OF_ORDER, (r2m_client.StepOutOfOrder, r2m_client.Conflict)),
        (Code.ALIGN_CONFLICT, (AlignConflict, r2m_client.Conflict)),
        (Code.ALIAS_MOVED, (r2m_client.AliasMoved, r2m_client.Conflict)),
        (Code.RUN_EXISTS, (r2m_client.RunExists, r2m_client.Conflict)),
        (Code.BACKBONE_MISMATCH, (r2m_client.Conflict,)),
        (Code.FEEDBACK_WIDTH, (SampleProblem, ValueError)),
        (Code.TEXT_TOO_LONG, (SampleProblem,)),
        (Code.OVERLOADED, (Overloaded,)),
        (Code.STORAGE_FAILED, (Unavailable,)),
        (Code.DEADLINE_EXCEEDED, (ServerDeadline, DeadlineError, TimeoutError)),
    ],
)
def test_classes_are_what_their_names_say(code, kinds):
    error = _errors.server_error({"code": code, "message": "m"})
    assert all(isinstance(error, kind) for kind in (*kinds, ServerError, R2MError))


@pytest.mark.parametrize("code", list(TABLE))
def test_every_code_over_both_transports(server, script, open_caller, is_async, code):
    caller = open_caller(server.url, is_async=is_async, retries=0)
    script.steps.append(Refuse(Problem(code, "a sentence", field="samples[3]"), retry_after=2.5))
    with pytest.raises(ServerError) as caught:
        caller("run", "tldr")
    error = caught.value
    assert type(error) is _errors.CLASSES[code]
    assert (error.code, error.message, error.field) == (code, "a sentence", "samples[3]")
    assert (error.retryable, error.status) == (TABLE[code].retryable, TABLE[code].http)
    assert error.retry_after == (2.5 if server.scheme == "grpc" else None)  # HTTP: whole seconds
    assert str(error) == f"{code}: a sentence (at samples[3])"
    assert len(script.seen) == 1


def test_a_code_of_a_newer_server(caller, script):
    problem = Problem(Code.RUN_ARCHIVED, "no idea")
    script.steps += [Refuse(problem, code="moon_phase", stated=True), Refuse(problem, code="moon")]
    with pytest.raises(ServerError) as caught:
        caller("run", "tldr")
    assert type(caught.value) is ServerError
    assert (caught.value.code, caught.value.retryable) == ("moon", False)
    assert len(script.seen) == 2  # the first said of itself that it is retryable


def test_the_answers_own_retryable_wins(caller, script):
    script.steps.append(Refuse(Problem(Code.STORAGE_FAILED, "disk"), stated=False))
    with pytest.raises(Unavailable):
        caller("run", "tldr")
    assert len(script.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html><title>It works!</title></html>", {"Content-Type": "text/html"}),
        (404, b"<h1>Not  \n Found</h1>", {"Content-Type": "text/html"}),
        (404, b'{"detail": "Not Found"}', {"Content-Type": "application/json"}),
        (403, b'{"error": "forbidden"}', {}),
        (301, b"", {"Location": "https://example.test/"}),
        (200, b"[1, 2]", {}),
        (200, b"\xff\xfe", {}),
        (200, b"", {}),
    ],
    ids=["page", "not found", "other json", "other error", "redirect", "list", "binary", "empty"],
)
def test_http_answers_of_something_else(http_server, script, open_caller, is_async, answer):
    script.steps.append(answer)
    with pytest.raises(ProtocolError, match=f"HTTP {answer[0]}") as caught:
        open_caller(http_server.url, is_async=is_async)("runs")
    assert caught.value.status == answer[0]
    assert len(str(caught.value)) < 400
    assert len(script.seen) == 1


def test_an_excerpt_is_short_and_in_one_line(http_server, script, open_caller):
    script.steps.append((200, b"<h1>Hello</h1>\n" * 500, {"Content-Type": "text/html"}))
    with pytest.raises(ProtocolError, match="<h1>Hello</h1> <h1>") as caught:
        open_caller(http_server.url)("runs")
    assert len(str(caught.value)) < 400


def test_a_body_that_claims_to_be_compressed(http_server, script, open_caller, is_async):
    script.steps.append((200, b"{}", {"Content-Encoding": "gzip"}))
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        open_caller(http_server.url, is_async=is_async)("runs")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((grpc.StatusCode.UNIMPLEMENTED, "Method not found!"), ProtocolError, "UNIMPLEMENTED"),
        ((grpc.StatusCode.UNKNOWN, "Exception calling"), ProtocolError, "Exception calling"),
        ((grpc.StatusCode.PERMISSION_DENIED, "no"), ProtocolError, "PERMISSION_DENIED"),
        ((grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"), ProtocolError, "RESOURCE_EXHAUSTED"),
        (
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)"),
            InvalidRequest,
            "too_large: .*9 vs. 4",
        ),
        ((grpc.StatusCode.DEADLINE_EXCEEDED, "late"), DeadlineError, "timeout"),
        (b"\xff\xff", ProtocolError, "no ListRunsResponse"),
    ],
)
def test_grpc_answers_of_something_else(
    grpc_server, script, open_caller, is_async, answer, kind, words
):
    script.steps.append(answer)
    with pytest.raises(kind, match=words):
        open_caller(grpc_server.url, is_async=is_async)("runs")
    assert len(script.seen) == 1


class Status:
    def __init__(self, metadata):
        self._metadata = metadata

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "gone"

    def trailing_metadata(self):
        return self._metadata


def details(*messages):
    status = status_pb2.Status()
    for message in messages:
        status.details.add().Pack(message)
    return (("other", "x"), ("grpc-status-details-bin", status.SerializeToString()))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        (("grpc-status-details-bin", b"\xff\xff"),),
        details(),
        details(error_details_pb2.ErrorInfo(reason="overloaded", domain="example.test")),
    ],
    ids=["none", "empty", "garbage", "no details", "another domain"],
)
def test_grpc_details_that_are_not_ours(metadata):
    assert isinstance(grpc_failure(Status(metadata), "grpc://h:1"), ConnectError)


def test_grpc_details_of_ours_beside_a_gateways():
    theirs = error_details_pb2.ErrorInfo(reason="X", domain="example.test")
    ours = error_details_pb2.ErrorInfo(reason="not_ready", domain="r2m")
    for order in ([theirs, ours], [ours, theirs]):
        error = grpc_failure(Status(details(*order)), "grpc://h:1")
        assert isinstance(error, Unavailable)
        assert (error.code, error.retryable, error.message) == ("not_ready", True, "gone")


@pytest.mark.parametrize(
    ("raised", "kind", "maybe_sent"),
    [
        (httpx.ConnectError("refused"), ConnectError, False),
        (httpx.ConnectTimeout(""), ConnectError, False),
        (httpx.ReadError("reset"), ConnectError, True),
        (httpx.RemoteProtocolError("hung up"), ConnectError, True),
        (httpx.ReadTimeout(""), DeadlineError, None),
        (httpx.WriteTimeout(""), DeadlineError, None),
        (httpx.PoolTimeout(""), DeadlineError, None),
    ],
)
def test_failures_of_the_network(raised, kind, maybe_sent):
    error = http_failure(raised, "http://h:1")
    assert type(error) is kind
    assert "http://h:1" in str(error)
    assert getattr(error, "maybe_sent", None) is maybe_sent


def test_retry_after_is_a_number_or_a_date():
    assert [retry_after(v) for v in (None, "", "7", "-1", "soon", "nan")] == [
        None,
        None,
        7.0,
        None,
        None,
        None,
    ]
    now = datetime.now(UTC)
    assert 50 < retry_after(format_datetime(now + timedelta(minutes=1), usegmt=True)) <= 60
    assert retry_after(format_datetime(now - timedelta(minutes=1), usegmt=True)) == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00") is None


@pytest.mark.parametrize(
    "error",
    [
        _errors.server_error({"code": "step_conflict", "message": "m", "field": "step"}),
        _errors.server_error(
            {"code": "deadline_exceeded", "message": "m"}, retry_after=1.0, request_id="4711"
        ),
        ConnectError("gone", maybe_sent=False),
        DeadlineError("late"),
        ProtocolError("page", status=502, passing=True),
        r2m_client.SamplesFailed("1 of 2", errors={"a": _errors.server_error({"code": "x"})}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_process_borders(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert {k: str(v) for k, v in vars(found).items()} == {
        k: str(v) for k, v in vars(error).items()
    }


def test_a_password_in_the_url_is_not_shown(open_caller):
    caller = open_caller("http://me:secret@127.0.0.1:1", retries=0)
    with pytest.raises(ConnectError) as caught:
        caller("runs")
    assert "secret" not in str(caught.value)
