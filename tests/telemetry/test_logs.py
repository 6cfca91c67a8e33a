"""The log: what a line says, and what none ever does."""

import json
import logging
import pathlib
import re
import shutil
import subprocess

import grpc
import httpx
import pytest
from support.processes import Process
from support.rollouts import WIDTH_P

from r2m.v1 import r2m_pb2 as pb
from r2m_client import Client, Group, Label, Pair, R2MError, Sample, ServerError
from r2m_service.access.keyfile import KeyFile
from r2m_service.application.about import about_call, content, tell
from r2m_service.application.samples import tell_texts
from r2m_service.domain.access import Scope
from r2m_service.logs import WITHHELD, JsonLines, TextLines, add_known, configure

PROMPT, RESPONSE = "canary-prompt-4711", "canary-response-0815"


def record(message, *args, error=None, **facts):
    info = (type(error), error, error.__traceback__) if error else None
    one = logging.LogRecord("r2m.test", logging.INFO, __file__, 1, message, args, info)
    one.facts = facts
    add_known(one)
    return one


def raised(error):
    try:
        raise error
    except type(error) as found:
        return found


@pytest.mark.parametrize("lines", [JsonLines(False), TextLines(False)])
def test_a_line_is_a_line_whatever_a_client_calls_things(lines):
    name = 'a"b\nERROR r2m forged\r\x1b[31m\u2028x'
    line = lines.format(record("run %s went", name, run=name, many="x" * 10_000))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert len(line) < 1500
    if isinstance(lines, JsonLines):
        assert json.loads(line)["run"] == name


def test_a_record_has_what_is_known_of_its_call():
    with about_call(request_id="abc"):
        tell(run="r", step=None, head=3)
        with about_call(span_id="inner"):
            tell(head=4)
            inner = json.loads(JsonLines(False).format(record("x")))
        outer = json.loads(JsonLines(False).format(record("x", milliseconds=1.5)))
    assert (inner["run"], inner["head"], inner["span_id"]) == ("r", 4, "inner")
    assert (outer["head"], outer["milliseconds"], outer["request_id"]) == (3, 1.5, "abc")
    assert "span_id" not in outer
    assert "step" not in outer
    after = json.loads(JsonLines(False).format(record("x")))
    assert set(after) == {"time", "level", "logger", "message"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", after["time"])


@pytest.mark.parametrize("form", [JsonLines, TextLines])
def test_what_an_error_says_is_told_where_it_cannot_be_a_text(form):
    text = raised(ValueError(f"cannot tokenize {PROMPT!r}"))
    disk = raised(OSError(28, "No space left on device", "/state/x"))
    assert PROMPT not in form(False).format(record("failed", error=text))
    assert WITHHELD in form(False).format(record("failed", error=text))
    assert "test_logs.py" in form(False).format(record("failed", error=text))
    assert "No space left" in form(False).format(record("failed", error=disk))
    assert PROMPT in form(True).format(record("failed", error=text))


def test_texts_are_logged_where_they_were_asked_for(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    before, level = root.level, content.level
    sample = Sample("s", PROMPT, RESPONSE)
    try:
        for asked in (False, True):
            configure("json", "info", show_content=asked)
            from r2m_service.application.contract import SampleIn

            tell_texts([SampleIn(id=sample.id, prompt=PROMPT, response=RESPONSE)])
            said = capsys.readouterr().err
            assert (PROMPT in said) is (RESPONSE in said) is asked
    finally:
        root.setLevel(before)
        content.setLevel(level)


FAULT = """
import r2m_service.modeling.backbone as b
encode = b.Backbone.encode
def broken(self, batch, **more):
    if any(85 < len(ids) < 128 for ids in batch):
        raise ValueError("the text was canary-prompt-4711")
    return encode(self, batch, **more)
b.Backbone.encode = broken
"""


@pytest.fixture(scope="module")
def logged(reward_model, tmp_path_factory):
    """All that a server with keys said in a life with good calls, bad ones, and a bug of ours."""
    folder = tmp_path_factory.mktemp("logged")
    keys = KeyFile(folder / "keys.json")
    row, key = keys.create("trainer", Scope.ALIGN)
    server = Process(
        reward_model, folder / "state", "--keys", str(keys.path), "--log-format", "json",
        "--log-level", "debug", first=FAULT,
    )  # fmt: skip
    secrets = [PROMPT, RESPONSE, key, key.rpartition("_")[2]]
    answers = {}
    try:
        server.wait_ready()
        for url in (server.http, server.grpc):
            with Client(url, api_key=key, retries=0) as client:
                _work(client, "run-" + url.split(":")[0])
                refused = []
                for wrong in (
                    lambda: client.run(f"nobody-{PROMPT[:6]}"),
                    lambda: client.score([Sample("s", PROMPT)] * 2, run="run-http"),
                    lambda: client.create_run("bad name", method={PROMPT: RESPONSE}),
                    lambda: client.rollback("run-http", to=99, reason=RESPONSE),
                ):
                    with pytest.raises(ServerError) as caught:
                        wrong()
                    refused.append(caught.value.request_id)
                answers[f"refused over {url[:4]}"] = refused
            with (
                Client(url, api_key=f"r2m_{row.id}_{'0' * 43}", retries=0) as stranger,
                pytest.raises(R2MError),
            ):
                stranger.server()
        with httpx.Client(base_url=server.http, headers={"Authorization": f"Bearer {key}"}) as http:
            for name, body in {
                "no JSON": f'{{"prompt": "{PROMPT}"',
                "wrong types": json.dumps({"samples": [{"id": PROMPT * 9, "prompt": [RESPONSE]}]}),
                "unknown keys": json.dumps({"samples": [], PROMPT: RESPONSE}),
            }.items():
                answers[name] = http.post("/v1/score", content=body)
            for given in ("good-id:1", "bad id\u00e9", "x" * 500):
                answers[given] = http.get("/v1/server", headers={"X-Request-Id": given.encode()})
            answers["query"] = http.get(f"/v1/runs/x/heads?limit={PROMPT}")
        with grpc.insecure_channel(server.grpc.removeprefix("grpc://")) as channel:
            call = channel.unary_unary(
                "/r2m.v1.RewardModelService/GetServer",
                response_deserializer=pb.GetServerResponse.FromString,
            )
            meta = (("authorization", f"Bearer {key}"), ("x-request-id", "grpc-id"))
            _, answer = call.with_call(b"", metadata=meta)
            answers["grpc"] = dict(answer.trailing_metadata())
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", metadata=(("x-request-id", "refused-id"),))
            answers["refused"] = dict(refused.value.trailing_metadata())
            for method in ("Score", "AlignStream", "ScoreStream", "AddLabels"):
                for garbage in (PROMPT.encode(), b"\xff" * 9, pb.ScoreRequest(run=PROMPT * 9)):
                    raw = garbage if isinstance(garbage, bytes) else garbage.SerializeToString()
                    stream = channel.stream_stream(f"/r2m.v1.RewardModelService/{method}")
                    with pytest.raises(grpc.RpcError):
                        list(stream(iter([raw]), metadata=meta[:1]))
    finally:
        code, output = server.end()
    assert code == 0, output
    return output, secrets, answers


def _work(client, run):
    client.create_run(run, feedback="backbone", method={"width": 16, "audit_rate": 1.0})
    made = [Sample(f"{run}-{n}", PROMPT, f"{RESPONSE} {'x' * n}") for n in range(3)]
    client.score(made, run=run)
    client.align(run, step=1, groups=[Group("g", made)])
    with pytest.raises(R2MError):
        client.align(run, step=9, groups=[Group("g", made)])
    labels = [Label(id=one.id, grade=0.5) for one in made] + [Label(id=RESPONSE, grade=1.0)]
    assert client.add_labels(run, labels).labels[-1].error
    client.evaluate(run, [Pair("p", made[0], made[1])], heads=[0, 1])
    if run.endswith("grpc"):
        with client.score_stream(run=run) as stream:
            stream.send(made[0])
            stream.send(Sample("empty", "", ""))
            stream.finish()
            assert len(list(stream)) == 2
    with pytest.raises(R2MError):
        client.score([Sample("long", PROMPT, RESPONSE + " word" * 8)], run=run).raise_for_errors()
    assert WIDTH_P


def test_no_line_holds_a_prompt_a_response_or_a_key(logged):
    output, secrets, _ = logged
    assert "the device failed" in output  # our bug was there,
    assert WITHHELD in output  # and was logged
    assert '"failed": 1' in output
    assert [one for one in secrets if one in output] == []


def test_every_line_is_json_and_says_whose_it_is(logged):
    output, _, _ = logged
    lines = [json.loads(line) for line in output.splitlines()]
    access = [one for one in lines if one["logger"] == "r2m.access"]
    for transport in ("http", "grpc"):
        run = f"run-{transport}"
        score = next(one for one in access if one["method"] == "score" and one.get("run") == run)
        assert (score["head"], score["code"], score["transport"]) == (0, "ok", transport)
        assert score["milliseconds"] > 0
        assert len(score["key"]) == 8
        aligns = [one for one in access if "align" in one["method"] and one.get("run") == run]
        told = [(one["step"], one["code"], one.get("head")) for one in aligns]
        assert told == [(1, "ok", 1), (9, "step_out_of_order", None)]
        assert all(one["request_id"] for one in aligns)
    assert any(one["message"].startswith("ready: http://") for one in lines)
    assert {one["level"] for one in access if one["method"] == "readyz"} <= {"debug"}
    failed = next(one for one in lines if "error" in one)
    assert failed["error"] == "builtins.ValueError"
    assert "encode" in failed["stack"] or "broken" in failed["stack"]


def test_a_call_keeps_its_clients_name_where_a_log_can_hold_it(logged):
    _, _, answers = logged
    assert answers["good-id:1"].headers["x-request-id"] == "good-id:1"
    for bad in ("bad id\u00e9", "x" * 500):
        assert re.fullmatch(r"[0-9a-f]{32}", answers[bad].headers["x-request-id"])
    assert answers["no JSON"].status_code == 400
    assert answers["no JSON"].headers["x-request-id"]
    assert answers["grpc"]["x-request-id"] == "grpc-id"
    assert answers["refused"]["x-request-id"] == "refused-id"


def test_a_client_hears_by_what_name_the_log_knows_its_call(logged):
    output, _, answers = logged
    lines = [json.loads(line) for line in output.splitlines()]
    codes = {one["request_id"]: one["code"] for one in lines if one["logger"] == "r2m.access"}
    for transport in ("http", "grpc"):
        told = [codes[one] for one in answers[f"refused over {transport}"]]
        assert told == ["unknown_run", "duplicate_id", "invalid_request", "unknown_head"]


def test_a_line_says_how_much_came_and_what_http_said(logged):
    output, _, _ = logged
    lines = [json.loads(line) for line in output.splitlines()]
    scores = [one for one in lines if one.get("method") == "score" and one.get("run")]
    assert {one["transport"] for one in scores if one["bytes"] > 100} == {"http", "grpc"}
    assert {one["status"] for one in scores if one["transport"] == "http"} >= {200}
    assert all("status" not in one for one in scores if one["transport"] == "grpc")
    aligns = [one for one in lines if "align" in str(one.get("method")) and one.get("verdict")]
    assert [one["transport"] for one in aligns if one["bytes"] > 100] == ["http", "grpc"]
    (whole,) = [
        one for one in lines if one.get("method") == "score_stream" and one.get("run") == "run-grpc"
    ]
    parts = [one for one in lines if one.get("method") == "stream_sample"]
    assert {one["code"] for one in parts} == {"ok", "text_empty"}
    assert {one["request_id"] for one in parts} == {whole["request_id"]}
    assert {one["level"] for one in parts} == {"debug"}


def test_the_page_has_every_field_and_its_questions_have_answers(logged, tmp_path):
    output, _, _ = logged
    page = (pathlib.Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    fields = {key for line in output.splitlines() for key in json.loads(line)}
    assert {one for one in fields if f"`{one}`" not in page} == set()
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed (Debian: apt install jq)")
    (tmp_path / "r2m.log").write_text(output)
    questions = [line for line in page.splitlines() if line.startswith("jq ")]
    assert len(questions) == 4
    for question in questions:
        own = question.replace("tldr-7", "run-grpc").replace("4711", "grpc-id")
        answer = subprocess.run(
            ["bash", "-o", "pipefail", "-c", own], cwd=tmp_path, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip(), own
