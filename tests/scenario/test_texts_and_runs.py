"""Text as it really is, steps, changes, usage, evaluate: over HTTP and gRPC, by raw calls."""

import json

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from support.rollouts import WIDTH_P, groups, samples

from r2m.v1 import r2m_pb2 as pb
from r2m_client import Client
from r2m_service.application.contract import AlignRequest, SampleIn
from r2m_service.application.samples import content_hash, text_hash

SERVICE = "/r2m.v1.RewardModelService/"
METHOD = {"width": 16, "learning_rate": 3e-4}


class Raw:
    """Sends JSON bodies as they are, over either transport; gives (answer, error code)."""

    def __init__(self, server, kind):
        self.kind, self.server = kind, server
        self.http = httpx.Client(base_url=server.urls["http"])
        self.channel = grpc.insecure_channel(server.urls["grpc"].removeprefix("grpc://"))

    def close(self):
        self.http.close()
        self.channel.close()

    def __call__(self, method, verb, path, request, answer, body, run=None):
        if self.kind == "http":
            got = self.http.request(verb, path, json=None if verb == "GET" else body)
            data = got.json()
            return (None, data["error"]["code"]) if "error" in data else (data, None)
        message = ParseDict({**body, **({"run": run} if run else {})}, request())
        call = self.channel.unary_unary(
            SERVICE + method,
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            found = MessageToDict(call(message, timeout=30), preserving_proto_field_name=True)
        except grpc.RpcError as error:
            return None, error.trailing_metadata() and error.code().name
        return found, None

    def score(self, run, body):
        path = f"/v1/runs/{run}/score" if run else "/v1/score"
        return self("Score", "POST", path, pb.ScoreRequest, pb.ScoreResponse, body, run)


@pytest.fixture(params=["http", "grpc"])
def raw(server, request):
    one = Raw(server, request.param)
    yield one
    one.close()


def rewards(answer):
    assert all("error" not in one for one in answer["scores"]), answer
    return [one["reward"] for one in answer["scores"]]


CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]


def test_every_form_of_the_same_text_has_the_same_reward(raw, backbone):
    ids = backbone.text.pair(CHAT[0]["content"], CHAT[1]["content"]).ids
    answer, _ = raw.score(
        None,
        {
            "samples": [
                {"id": "pair", "prompt": CHAT[0]["content"], "response": CHAT[1]["content"]},
                {"id": "messages", "messages": CHAT},
                {"id": "ids", "token_ids": list(ids), "finish_reason": "length"},
            ]
        },
    )
    first, *others = rewards(answer)
    assert all(abs(other - first) < 1e-6 for other in others)
    assert {int(one["tokens"]) for one in answer["scores"]} == {len(ids)}
    assert answer["scores"][2]["finish_reason"] == "length"


def test_conversations_with_a_system_and_tool_turns(raw):
    tools = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {}}}])
    call = json.dumps([{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}])
    turns = [
        {"role": "system", "content": "Be brief."},
        *CHAT,
        {"role": "user", "content": "And 3?"},
        {"role": "assistant", "tool_calls": call},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "3."},
    ]
    answer, _ = raw.score(None, {"samples": [{"id": "a", "messages": turns, "tools": tools}]})
    short, _ = raw.score(None, {"samples": [{"id": "a", "messages": turns[:3]}]})
    assert rewards(answer) != rewards(short)


@pytest.mark.parametrize(
    ("sample", "code", "field"),
    [
        ({}, "text_empty", "prompt, response"),
        ({"prompt": "a"}, "text_empty", "response"),
        ({"prompt": "a", "response": "b", "token_ids": [1]}, "text_invalid", "prompt, response"),
        ({"messages": CHAT[:1]}, "text_invalid", "messages[0].role"),
        ({"messages": [{"role": "assistant"}]}, "text_empty", "messages[0]"),
        ({"token_ids": [5, 99999]}, "text_invalid", "token_ids[1]"),
        ({"token_ids": [-1]}, "text_invalid", "token_ids[0]"),
        ({"token_ids": [5] * 200}, "text_too_long", "token_ids"),
        ({"messages": CHAT, "tools": "{"}, "text_invalid", "tools"),
        (
            {"messages": [{"role": "assistant", "tool_calls": "3"}]},
            "text_invalid",
            "messages[0].tool_calls",
        ),
    ],
)
def test_a_wrong_text_fails_alone_and_is_named(raw, sample, code, field):
    good = {"id": "good", "messages": CHAT}
    answer, _ = raw.score(None, {"samples": [{"id": "bad", **sample}, good]})
    bad, fine = answer["scores"]
    assert (bad["error"]["code"], bad["error"]["field"]) == (code, field)
    assert "error" not in fine


def create(raw, run, **body):
    made, code = raw(
        "CreateRun", "POST", "/v1/runs", pb.CreateRunRequest, pb.Run, {"run": run, **body}
    )
    assert code is None, code
    return made


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_is_opt_in_and_stated(raw, run_name, side, backbone):
    create(raw, run_name, feedback="none", truncation=side)
    ids = [5 + n % 200 for n in range(150)]
    limit = backbone.text.max_length
    cut = ids[-limit:] if side == "left" else ids[:limit]
    answer, _ = raw.score(
        run_name,
        {"samples": [{"id": "long", "token_ids": ids}, {"id": "cut", "token_ids": cut}]},
    )
    long, short = answer["scores"]
    assert long["reward"] == pytest.approx(short["reward"], abs=1e-6)
    assert int(long["truncated"]) == 150 - limit
    assert "truncated" not in short
    assert int(long["tokens"]) == limit


@pytest.fixture
def trained(server, run_name):
    """A run with three accepted steps, made through the client."""
    with Client(server.urls["grpc"], wire_dtype="float32") as client:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        for step in (1, 2, 3):
            assert client.align(run_name, step=step, groups=groups(step)).accepted
    return run_name


def test_a_score_may_name_a_step(raw, trained):
    for step, head in ((1, 0), (2, 1), (4, 3)):
        answer, _ = raw.score(trained, {"samples": [], "step": step})
        assert int(answer.get("head", 0)) == head
    _, code = raw.score(trained, {"samples": [], "step": 5})
    assert code in ("step_out_of_order", "FAILED_PRECONDITION")
    _, code = raw.score(trained, {"samples": [], "step": 2, "head": "3"})
    assert code in ("invalid_request", "INVALID_ARGUMENT")
    answer, _ = raw.score(trained, {"samples": [], "branch": "main"})
    assert int(answer["head"]) == 3


def update(raw, run, body):
    return raw("UpdateRun", "PATCH", f"/v1/runs/{run}", pb.UpdateRunRequest, pb.Run, body, run)


def test_changes_are_audited_and_survive_a_second_create(raw, trained, server):
    reason = "too fast"
    run, _ = update(raw, trained, {"method": {"learning_rate": 1e-5}, "reason": reason})
    assert run["method"]["learning_rate"] == 1e-5
    gate = {"method": {"gate": {"spread_max": 3.0}}}
    run, _ = update(raw, trained, gate)
    assert run["method"]["gate"]["spread_max"] == 3.0
    assert run["method"]["gate"]["rank_correlation_min"] == 0.8
    for wrong in ({"method": {"width": 8}}, {"method": {}}, {"method": {"alpha": 7}}):
        _, code = update(raw, trained, wrong)
        assert code in ("invalid_request", "INVALID_ARGUMENT")
    trail, _ = raw(
        "ListChanges", "GET", f"/v1/runs/{trained}/changes", pb.ListChangesRequest,
        pb.ListChangesResponse, {}, trained,
    )  # fmt: skip
    assert [one["what"] for one in trail["changes"]] == ["created", "updated", "updated"]
    assert trail["changes"][1]["detail"] == {"learning_rate": [3e-4, 1e-5]}
    assert trail["changes"][1]["reason"] == reason
    # A trainer that starts again with its own settings finds its run.
    with Client(server.urls["http"], wire_dtype="float32") as client:
        again = client.create_run(trained, policy_hidden_size=WIDTH_P, method=METHOD)
        assert again.method["learning_rate"] == 1e-5
        assert client.align(trained, step=4, groups=groups(4)).accepted


def test_a_run_shows_its_usage_and_its_live_numbers(raw, trained, server):
    with Client(server.urls["http"], wire_dtype="float32") as client:
        client.score(samples(1), run=trained)
    run, _ = raw("GetRun", "GET", f"/v1/runs/{trained}", pb.GetRunRequest, pb.Run, {}, trained)
    usage = run["usage"]
    assert (int(usage["samples"]), int(usage["aligns"])) == (4, 3)
    aligned = [s for step in (1, 2, 3) for group in groups(step) for s in group.samples]
    took = sum(s.hidden_states.nbytes for s in [*samples(1), *aligned])
    assert int(usage["feedback_bytes"]) == took
    assert float(usage["device_seconds"]) > 0
    assert run["live"]["verdict"] == "accepted"
    assert run["live"]["loss"]["bt"] > 0


def test_evaluate_judges_heads_on_the_same_pairs(raw, run_name):
    create(raw, run_name, feedback="none")
    pairs = [
        {
            "id": f"p{n}",
            "chosen": {"id": f"p{n}-a", "prompt": "Hi", "response": f"Good {n} " * n},
            "rejected": {"id": f"p{n}-b", "prompt": "Hi", "response": f"Bad {n}"},
        }
        for n in range(1, 9)
    ]
    broken = {**pairs[0], "id": "broken", "chosen": {"id": "x", "prompt": "", "response": "a"},
              "rejected": {"id": "y", "prompt": "Hi", "response": "z"}}  # fmt: skip
    call = ("Evaluate", "POST", f"/v1/runs/{run_name}/evaluate", pb.EvaluateRequest,
            pb.EvaluateResponse)  # fmt: skip
    answer, _ = raw(*call, {"heads": ["live"], "pairs": [*pairs, broken]}, run_name)
    assert int(answer["pairs"]) == 8
    assert not answer["heads"][0].get("margins")
    (head,) = answer["heads"]
    assert head["accuracy"] == int(head.get("correct", 0)) / 8
    assert 0 <= head["low"] <= head["accuracy"] <= head["high"] <= 1
    # Version 0 ranks exactly as the frozen model.
    assert answer["vanilla"]["accuracy"] == head["accuracy"]
    assert int(answer["vanilla"].get("better", 0)) == int(answer["vanilla"].get("worse", 0)) == 0
    (error,) = answer["errors"]
    assert (error["id"], error["group"], error["error"]["code"]) == ("x", "broken", "text_empty")


def test_a_raw_sample_may_say_which_side_is_cut(raw, backbone):
    words = "the sea is wide and blue " * 40
    ids = backbone.text.tokenizer(words)["input_ids"]
    most = backbone.text.max_length
    one = {"prompt": "", "response": words, "format": "raw"}
    answer, _ = raw.score(
        None,
        {
            "samples": [
                {**one, "id": "refused"},
                {**one, "id": "right", "truncation": "right"},
                {"id": "first", "token_ids": ids[:most]},
                {**one, "id": "left", "truncation": "left"},
                {"id": "last", "token_ids": ids[-most:]},
                {"id": "ids", "token_ids": ids, "truncation": "right"},
                {"id": "chat", "prompt": "Hi", "response": words, "truncation": "right"},
            ]
        },
    )
    found = {one["id"]: one for one in answer["scores"]}
    assert found["refused"]["error"]["code"] == "text_too_long"
    assert found["right"]["reward"] == pytest.approx(found["first"]["reward"], abs=1e-5)
    assert found["left"]["reward"] == pytest.approx(found["last"]["reward"], abs=1e-5)
    assert int(found["right"]["truncated"]) == len(ids) - most
    for name in ("ids", "chat"):
        error = found[name]["error"]
        assert (error["code"], error["field"]) == ("text_invalid", "truncation")


def test_what_a_raw_text_is_read_with_is_part_of_it_where_it_is_given():
    def hashes(**more):
        sample = SampleIn(id="a", prompt="p", response="r", format="raw", **more)
        group = {"id": "g", "samples": [sample]}
        return text_hash(sample), content_hash(AlignRequest.model_validate(
            {"step": 1, "groups": [group]}
        ))  # fmt: skip

    plain = hashes()
    # As computed before these fields were there: labels and aligns of then stay what they were.
    assert [one[:16] for one in plain] == ["2f13a8b7fcfbef60", "cb02f5972247d406"]
    others = [hashes(special_tokens=False), hashes(special_tokens=True), hashes(truncation="right")]
    for at in (0, 1):
        assert len({plain[at], *(one[at] for one in others)}) == 4
