"""A server's rules for texts: cut ones, empty responses, the template's date, what is no text."""

import json
from datetime import date, timedelta

import httpx
import pytest
import transformers.utils.chat_template_utils as transformers_templates
from sqlalchemy import create_engine, text
from support import models
from support.serving import running

from r2m_client import Client, Conflict, Sample
from r2m_service.modeling.loading import load_backbone

METHOD = {"width": 16, "learning_rate": 3e-4}
NONE = {"feedback": "none", "method": METHOD}
LONG = "the sea is wide and blue " * 40
DATED = "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}.\n" + models.TEMPLATE


@pytest.fixture(scope="module")
def strict(reward_model, backbone, tmp_path_factory):
    """A server that cuts, and takes no empty responses."""
    state = tmp_path_factory.mktemp("strict")
    rules = {"truncation": "left", "empty_response": "error"}
    with running(reward_model, state, backbone=backbone, **rules) as one:
        yield one


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_server_has_rules_for_what_is_scored_without_a_run(strict, backbone, kind):
    text = backbone.text
    limit = text.max_length
    with Client(strict.urls[kind], wire_dtype="float32", retries=0) as client:
        info = client.server()
        assert (info.truncation, info.empty_response) == ("left", "error")
        ids = text.pair("", LONG, raw=True, cut="left").ids
        long, same, empty = client.score(
            [
                Sample("long", "", LONG, format="raw"),
                Sample("same", token_ids=ids),
                Sample("empty", "Hi", ""),
            ]
        ).scores
        assert long.reward == pytest.approx(same.reward, abs=1e-6)
        assert (long.tokens, long.truncated) == (limit, len(text._ids(LONG, special=True)) - limit)
        assert empty.error.code == "text_empty"
        # A new run begins with the server's rule for empty responses, and with none for long texts.
        made = client.create_run(f"rules-{kind}", **NONE)
        assert (made.truncation, made.empty_response) == ("none", "error")
        long, empty = client.score(
            [Sample("a", "", LONG, format="raw"), Sample("b", "Hi", "")], run=made.run
        ).scores
        assert (long.error.code, empty.error.code) == ("text_too_long", "text_empty")
        own = client.create_run(f"own-{kind}", **NONE, truncation="right", empty_response="score")
        assert client.score([Sample("a", "Hi", LONG), Sample("b", "Hi", "")], run=own.run).rewards


def test_trainers_routes_at_the_root_follow_them(strict, server):
    body = {"prompt": "Hi", "response": "", "label": None}
    with httpx.Client(base_url=strict.urls["http"]) as http:
        assert http.post("/slime", json={**body, "response": LONG}).status_code == 200
        refused = http.post("/slime", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "text_empty")
    asked = {"input": [{"role": "user", "content": "Hi"}]}
    nothing = {"type": "message", "role": "assistant", "content": []}
    with (
        httpx.Client(base_url=server.urls["http"]) as http,
        Client(server.urls["http"], retries=0) as client,
    ):
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
        raw, chat = client.score(
            [Sample("a", "Hi", "", format="raw"), Sample("b", messages=turns)]
        ).rewards
        assert http.post("/slime", json=body).json() == pytest.approx(raw, abs=1e-6)
        query = {"query": ["Hi"], "prompts": ["Hi"]}
        assert http.post("/get_reward", json=query).json()["rewards"] == [
            pytest.approx(raw, abs=1e-6)
        ]
        verify = {"responses_create_params": asked, "response": {"output": [nothing]}}
        assert http.post("/verify", json=verify).json()["reward"] == pytest.approx(chat, abs=1e-6)


def test_streams_take_empty_responses_and_lone_surrogates(server):
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        client.create_run("text-streams", **NONE)
        with client.score_stream(run="text-streams") as stream:
            for sample in (Sample("a", "Hi", ""), Sample("b", "Hi", "\ud83d"), Sample("c", "", "")):
                stream.send(sample)
            stream.finish()
            found = {one.id: one for one in stream}
    assert found["a"].error is None
    codes = [found[one].error.code for one in "bc"]
    assert codes == ["text_invalid", "text_empty"]


HALF = "\ud83d"
GOOD = {"id": "good", "prompt": "p", "response": "r"}


def posted(server, path, body, *, verb="POST"):
    """As Python's json module writes it: lone surrogates are escapes."""
    with httpx.Client(base_url=server.urls["http"]) as http:
        answer = http.request(
            verb, path, content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code < 500, answer.text
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    "text",
    [
        {"prompt": HALF, "response": "r"},
        {"prompt": "p", "response": f"half {HALF}!"},
        {"prompt": "p", "response": "\udc00\ud800", "format": "raw"},
        {"messages": [{"role": HALF, "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": [{"role": "assistant", "content": HALF}]},
        {"messages": [{"role": "assistant", "tool_calls": json.dumps([HALF])}]},
        {"messages": [{"role": "assistant", "tool_calls": f'["{HALF}"]'}]},
        {"messages": [{"role": "assistant", "content": "x"}], "tools": json.dumps([HALF])},
    ],
)
def test_a_lone_surrogate_in_a_body_costs_its_sample_alone(server, text):
    status, answer = posted(server, "/v1/score", {"samples": [{"id": "bad", **text}, GOOD]})
    assert status == 200
    bad, good = answer["scores"]
    assert bad["error"]["code"] == "text_invalid"
    assert good["reward"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"samples": [{**GOOD, "id": HALF}]}),
        ("/v1/score", {"samples": [{**GOOD, "group": HALF}]}),
        ("/v1/score", {"samples": [{**GOOD, "finish_reason": HALF}]}),
        ("/v1/score", {"samples": [{**GOOD, "format": HALF}]}),
        ("/v1/score", {"samples": [{**GOOD, HALF: 1}]}),
        ("/v1/score", {"samples": [], HALF: 1}),
        ("/v1/score", {"samples": [{**GOOD, "feedback": {"dtype": HALF, "data": HALF}}]}),
        ("/v1/runs/surrogates/score", {"samples": [GOOD], "head": HALF}),
        ("/v1/runs/surrogates/score", {"samples": [GOOD], "branch": HALF, "step": 1}),
        ("/v1/runs/surrogates/align", {"step": 1, "branch": HALF, "groups": []}),
        ("/v1/runs/surrogates/align", {"step": 1, "groups": [{"id": HALF, "samples": [GOOD]}]}),
        ("/v1/runs/surrogates/labels", {"labels": [{"id": HALF, "grade": 1.0}]}),
        ("/v1/runs/surrogates/labels", {"labels": [{"id": "x", "grade": 1.0, "source": HALF}]}),
        ("/v1/runs/surrogates/rollback", {"to": 0, "reason": HALF}),
        ("/v1/runs", {"run": HALF}),
        ("/v1/runs", {"run": "x", "feedback": "none", "method": {"profile": HALF}}),
        ("/v1/runs", {"run": "x", "feedback": "none", "method": {HALF: 1}}),
        ("/v1/runs", {"run": "x", "feedback": "none", "method": {"gate": {HALF: 1}}}),
        ("/get_reward", {"query": [HALF]}),
        ("/slime", {"prompt": HALF, "response": "x"}),
        ("/slime", {"prompt": [{"role": "user", "content": HALF}], "response": "x"}),
        ("/classify", {"input": ["a", HALF]}),
        ("/v1/embeddings", {"input": "a", "encoding_format": HALF}),
        ("/verify", {"responses_create_params": {"input": HALF}, "response": {"output": []}}),
    ],
)
def test_lone_surrogates_elsewhere_are_refused_by_name(server, path, body):
    with Client(server.urls["http"], retries=0) as client:
        client.create_run("surrogates", **NONE)
    status, answer = posted(server, path, body)
    if status == 200:  # a sample's own error: its hidden states
        assert answer["scores"][0]["error"]["code"] in ("feedback_unexpected", "feedback_encoding")
    else:
        assert status in (400, 404)
        assert len(answer["error"]["message"]) > 10


def test_what_nemo_gym_sends_along_comes_back_whatever_it_is(server):
    said = {"type": "message", "role": "assistant", "content": "Yo."}
    body = {
        "responses_create_params": {"input": "Hi", "metadata": {"note": HALF}},
        "response": {"output": [said]},
        "mine": HALF,
    }
    status, answer = posted(server, "/verify", body)
    assert status == 200
    assert answer == {**body, "reward": answer["reward"]}
    assert posted(server, "/classify", {"input": "a", "model": HALF})[1]["model"] == HALF


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            "/v1/score",
            {"samples": [{"id": "a", "token_ids": [5, True]}]},
            "samples[0].token_ids[1]",
        ),
        ("/v1/score", {"samples": [{"id": "a", "token_ids": ["5"]}]}, "samples[0].token_ids[0]"),
        (
            "/v1/score",
            {"samples": [{**GOOD, "feedback": {"shape": [True, 4]}}]},
            "samples[0].feedback.shape[0]",
        ),
        (
            "/v1/score",
            {"samples": [{**GOOD, "feedback": {"split": {"fused": True}}}]},
            "samples[0].feedback.split.fused",
        ),
        ("/v1/runs/true/score", {"samples": [GOOD], "step": True}, "step"),
        ("/v1/runs/true/align", {"step": True, "groups": []}, "step"),
        ("/v1/runs/true/labels", {"labels": [{"id": "a", "grade": True}]}, "labels[0].grade"),
        ("/v1/runs/true/rollback", {"to": True}, "to"),
        ("/v1/runs", {"run": "x", "policy": {"hidden_size": True}}, "policy.hidden_size"),
        ("/v1/runs", {"run": "x", "feedback": "none", "method": {"width": True}}, "method"),
        (
            "/v1/runs",
            {"run": "x", "feedback": "none", "method": {"gate": {"spread_min": True}}},
            "method",
        ),
        ("/classify", {"input": [5, True]}, None),
        ("/classify", {"input": [[5, True]]}, None),
        ("/v1/embeddings", {"input": [True]}, None),
    ],
)
def test_true_is_no_number(server, path, body, field):
    with Client(server.urls["http"], retries=0) as client:
        client.create_run("true", **NONE)
    status, answer = posted(server, path, body)
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    assert "number" in answer["error"]["message"] or field is None
    if field is not None:
        assert answer["error"]["field"] == field


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    return models.save_reward_model(tmp_path_factory.mktemp("dated") / "m", template=DATED)


def test_rewards_stay_the_same_tomorrow_and_a_run_keeps_its_date(dated, tmp_path, monkeypatch):
    sample = Sample("a", "Hi", "Hello.")
    backbones = {
        day: load_backbone(str(dated), **({} if day is None else {"template_date": day}))
        for day in (None, date(2025, 1, 31))
    }
    found = []
    for later in (0, 1):

        class Today(transformers_templates.datetime):
            @classmethod
            def now(cls, tz=None, days=later):
                return super().now(tz) + timedelta(days=days)

        with monkeypatch.context() as faked:
            faked.setattr(transformers_templates, "datetime", Today)
            with (
                running(dated, tmp_path / "state", backbone=backbones[None]) as server,
                Client(server.urls["http"], retries=0) as client,
            ):
                run = client.create_run("dated", **NONE)
                assert run.template_date == client.server().template_date == "2024-07-26"
                found.append(client.score([sample], run="dated").rewards)
    assert found[0] == found[1]
    other = backbones[date(2025, 1, 31)]
    for kind in ("http", "grpc"):
        with (
            running(dated, tmp_path / "state", backbone=other) as server,
            Client(server.urls[kind], retries=0) as client,
        ):
            assert client.run("dated").template_date == "2024-07-26"
            with pytest.raises(Conflict, match="--template-date 2024-07-26"):
                client.score([sample], run="dated")
            assert client.score([sample]).rewards != found[0]


def test_a_model_whose_template_writes_no_date_has_none(server):
    with Client(server.urls["grpc"], retries=0) as client:
        assert client.server().template_date is None
        assert client.create_run("no-date", **NONE).template_date is None


def test_runs_of_before_go_on_refusing_empty_responses(reward_model, backbone, tmp_path):
    """As the migration leaves them: the default of the column, and no word in the trail."""
    with (
        running(reward_model, tmp_path, backbone=backbone) as server,
        Client(server.urls["http"], retries=0) as client,
    ):
        client.create_run("old", **NONE)
        engine = create_engine(f"sqlite:///{tmp_path / 'r2m.db'}")
        with engine.begin() as connection:
            (detail,) = connection.execute(text("SELECT detail FROM changes")).scalars()
            created = {k: v for k, v in json.loads(detail).items() if k != "empty_response"}
            connection.execute(text("UPDATE runs SET empty_response = 'error'"))
            connection.execute(
                text("UPDATE changes SET detail = :detail"), {"detail": json.dumps(created)}
            )
        engine.dispose()
        for stated in ({}, {"empty_response": "error"}):
            assert client.create_run("old", **NONE, **stated).empty_response == "error"
        (score,) = client.score([Sample("a", "Hi", "")], run="old").scores
        assert score.error.code == "text_empty"
