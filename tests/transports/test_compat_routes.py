"""The trainers' routes: forms, limits and errors, around an application that does not think."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from functools import partial
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from transport_fakes import FakeApplication
from transport_wires import http_failure

from r2m.errors import TABLE, Code, Problem
from r2m_service.application import contract
from r2m_service.application.parsing import parse
from r2m_service.transports.compat.messages import EngineOptions, example_of
from r2m_service.transports.compat.routes import MESSAGES, status_of
from r2m_service.transports.http.app import build_app
from r2m_service.transports.http.body import SMALL_BYTES
from r2m_service.transports.limits import ByteBudget, RequestLimit

ASKED = {"input": [{"role": "user", "content": "Hi"}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yo."}]}
BODIES = {
    "/v1/score/evaluation": {"model": "model", "messages": ["a b"]},
    "/get_reward": {"query": ["a b"], "prompts": ["a "], "labels": [None]},
    "/slime": {"prompt": "a ", "response": "b", "label": None},
    "/classify": {"model": "m", "input": "a b", "use_activation": False},
    "/v1/embeddings": {"model": "m", "input": "a b"},
    "/verify": {"responses_create_params": ASKED, "response": {"output": [SAID]}},
}
PATHS = sorted(BODIES)


class Scores(FakeApplication):
    """Rewards by text; an error where one is set for a text."""

    def __init__(self, errors=None):
        super().__init__()
        self.errors = errors or {}

    async def score(self, run, request):
        self._call("score", run, request)
        scores = [self._score(one) for one in request.samples]
        more = {} if run is None else {"run": run, "head": 3, "branch": "main", "omega": 0.6}
        return contract.ScoreAnswer(fingerprint="f" * 64, scores=scores, **more)

    def _score(self, sample):
        text = (sample.prompt or "") + (sample.response or "")
        if text in self.errors:
            return contract.ScoreOut(id=sample.id, error=self.errors[text])
        return contract.ScoreOut(
            id=sample.id, reward=len(text) + 0.1, vanilla_reward=-1.5, tokens=len(text)
        )


@contextlib.asynccontextmanager
async def serving(application=None, **settings):
    """The HTTP side of an application, without a socket."""
    application = application or FakeApplication()
    app = build_app(application, **{"max_body_bytes": 1 << 20, **settings})
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        yield SimpleNamespace(application=application, http=http)


def error_of(code, message="so it is"):
    return contract.ErrorOut(code=code.value, message=message, retryable=TABLE[code].retryable)


def sent(application):
    """The samples of its last call."""
    return [call for call in application.calls if call[0] == "score"][-1][2].samples


async def test_openrlhf_gets_numbers_in_order():
    async with serving(Scores()) as wires:
        body = {
            "query": ["p1 x", "p2 yy", "p1 z", "another"],
            "prompts": ["p1 ", "p2 ", "p1 ", "p1 "],
        }
        answer = (await wires.http.post("/get_reward", json=body)).json()
        lengths = [4, 5, 4, 7]
        assert answer == {
            "rewards": [n + 0.1 for n in lengths],
            "scores": [n + 0.1 for n in lengths],
            "extra_logs": {
                "vanilla_reward": [-1.5] * 4,
                "tokens": lengths,
                "truncated": [0.0] * 4,
            },
        }
        first, second, third, odd = sent(wires.application)
        assert (first.prompt, first.response, first.format) == ("p1 ", "x", "raw")
        # One that does not begin with its prompt is one text all the same.
        assert (odd.prompt, odd.response, odd.group) == ("", "another", "")
        assert first.group == third.group != second.group
        of_run = (await wires.http.post("/runs/r/get_reward", json=body)).json()
        assert of_run["extra_logs"]["head"] == [3] * 4
        assert of_run["extra_logs"]["omega"] == [0.6] * 4
        assert wires.application.calls[-1][1] == "r"


async def test_one_text_has_one_name_and_is_scored_once():
    async with serving(Scores()) as wires:
        body = {"query": ["p x", "p y", "p x"], "prompts": ["p "] * 3}
        answer = (await wires.http.post("/get_reward", json=body)).json()
        assert answer["rewards"] == [3.1, 3.1, 3.1]
        once = sent(wires.application)
        assert [one.response for one in once] == ["x", "y"]
        await wires.http.post("/runs/r/get_reward", json={"query": ["p x"], "prompts": ["p "]})
        (again,) = sent(wires.application)
        assert (again.id, again.group) == (once[0].id, once[0].group)
        # With the special tokens that the tokenizer adds it is another text of the same prompt.
        await wires.http.post("/runs/r/slime", json={"prompt": "p ", "response": "x"})
        (other,) = sent(wires.application)
        assert other.group == again.group
        assert other.id != again.id


@pytest.mark.parametrize("body", [{"query": []}, {"query": [], "prompts": [], "labels": []}])
async def test_an_empty_query_is_answered_with_nothing(body):
    async with serving() as wires:
        for path in ("/get_reward", "/runs/r/get_reward"):
            answer = (await wires.http.post(path, json=body)).json()
            assert answer == {"rewards": [], "scores": [], "extra_logs": {}}


async def test_prompts_that_do_not_fit_are_refused():
    async with serving() as wires:
        body = {"query": ["a", "b"], "prompts": ["a"]}
        refused = http_failure(await wires.http.post("/get_reward", json=body))
        assert (refused.code, refused.field, refused.status) == ("invalid_request", "prompts", 400)


async def test_slime_gets_a_number_as_the_whole_body():
    async with serving(Scores()) as wires:
        got = await wires.http.post("/slime", json=BODIES["/slime"])
        assert got.headers["content-type"] == "application/json"
        assert json.loads(got.text) == 3.1
        turns = [{"role": "user", "content": "Hi"}]
        await wires.http.post(
            "/slime", json={"prompt": turns, "response": "Yo.", "label": {"a": 1}}
        )
        (one,) = sent(wires.application)
        assert [turn.content for turn in one.messages] == ["Hi", "Yo."]
        assert one.prompt is None
        assert one.group
        wrong = {"prompt": [{"role": "user", "content": ["Hi"]}], "response": "Yo."}
        refused = http_failure(await wires.http.post("/slime", json=wrong))
        assert (refused.code, refused.field) == ("invalid_request", "messages[0].content")


async def test_vllm_s_form():
    async with serving(Scores()) as wires:
        answer = (await wires.http.post("/classify", json={"input": ["ab", "c"]})).json()
        assert answer["data"] == [
            {"index": 0, "label": "LABEL_0", "probs": [2.1], "num_classes": 1},
            {"index": 1, "label": "LABEL_0", "probs": [1.1], "num_classes": 1},
        ]
        assert (answer["object"], answer["model"]) == ("list", "m")
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
        named = await wires.http.post("/classify", json={**BODIES["/classify"], "model": "mine"})
        assert named.json()["model"] == "mine"


@pytest.mark.parametrize(
    ("given", "count"), [([5, 6, 7], 1), ([[5, 6], [7]], 2), ([], 0), (["a", "b"], 2), ("", 1)]
)
@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings"])
async def test_texts_and_token_ids_of_one_or_several(path, given, count):
    async with serving(Scores()) as wires:
        answer = await wires.http.post(path, json={"input": given})
        assert len(answer.json()["data"]) == count
        ids = [one.token_ids for one in sent(wires.application) if one.token_ids]
        assert ids == {"[5, 6, 7]": [[5, 6, 7]], "[[5, 6], [7]]": [[5, 6], [7]]}.get(str(given), [])


@pytest.mark.parametrize("name", ["use_activation", "activation"])
async def test_a_squashed_reward_is_refused(name):
    async with serving() as wires:
        for value, status in ((True, 400), (False, 200), (None, 200)):
            got = await wires.http.post("/classify", json={"input": "a", name: value})
            assert got.status_code == status


async def test_sglang_s_forms():
    async with serving(Scores()) as wires:
        several = await wires.http.post("/classify", json={"model": "m", "text": ["ab", "c"]})
        assert [one["embedding"] for one in several.json()] == [[2.1], [1.1]]
        one = await wires.http.post("/classify", json={"text": "ab"})
        assert one.json()["embedding"] == [2.1]
        plain = await wires.http.post("/v1/embeddings", json=BODIES["/v1/embeddings"])
        assert plain.json()["data"] == [{"object": "embedding", "index": 0, "embedding": [3.1]}]
        packed = {**BODIES["/v1/embeddings"], "encoding_format": "base64"}
        got = (await wires.http.post("/v1/embeddings", json=packed)).json()["data"][-1]["embedding"]
        assert struct.unpack("<f", base64.b64decode(got)) == (pytest.approx(3.1),)
        for body in ({"input": "a", "text": "b"}, {"model": "m"}):
            refused = http_failure(await wires.http.post("/classify", json=body))
            assert (refused.code, refused.field) == ("invalid_request", "input")
        odd = {"input": "a", "encoding_format": "hex"}
        refused = http_failure(await wires.http.post("/v1/embeddings", json=odd))
        assert (refused.code, refused.field) == ("invalid_request", "encoding_format")


async def test_nemo_gym_gets_back_what_it_sent_and_the_reward():
    body = {**BODIES["/verify"], "verifier_metadata": {"a": [1, None]}, "reward": 7}
    async with serving(Scores()) as wires:
        answer = (await wires.http.post("/verify", json=body)).json()
        assert answer == {**body, "reward": 0.1}  # its conversation is no prompt and no response
        (one,) = sent(wires.application)
        assert [(turn.role, turn.content) for turn in one.messages] == [
            ("user", "Hi"),
            ("assistant", "Yo."),
        ]
        assert (await wires.http.post("/seed_session", json={"any": "thing"})).json() == {}


async def test_nemo_gym_s_calls_come_with_the_rollout_in_front_when_it_watches():
    """With observability_enabled its client writes /ng-rollout/ID before the path."""
    async with serving(Scores(), compat_run="mine") as wires:
        for rollout in ("", "/ng-rollout/7-2", "/ng-rollout/a.b_c-a1"):
            body = {**BODIES["/verify"], "_ng_task_index": 7, "_ng_rollout_index": 2}
            answer = (await wires.http.post(f"{rollout}/verify", json=body)).json()
            assert answer == {**body, "reward": 0.1}
            assert wires.application.calls[-1][:2] == ("score", "mine")
            seeded = await wires.http.post(f"{rollout}/seed_session", json=body)
            assert (seeded.status_code, seeded.json()) == (200, {})
        assert (await wires.http.get("/reverify_mode")).json() == "stateless"


async def test_nemo_gym_gets_the_statistics_that_its_own_servers_compute():
    rows = [
        {"_ng_task_index": task, "_ng_rollout_index": n, "reward": reward, "response": {}}
        for task, rewards in ((3, [0.5]), (1, [0.25, 0.75, 2.0]))
        for n, reward in enumerate(rewards)
    ]
    async with serving() as wires:
        got = await wires.http.post("/aggregate_metrics", json={"verify_responses": rows})
        empty = await wires.http.post("/aggregate_metrics", json={"verify_responses": []})
        odd = await wires.http.post("/aggregate_metrics", json={"verify_responses": [{"a": 1}]})
        huge = await wires.http.post(
            "/aggregate_metrics", content=b'{"verify_responses": [{"reward": 1e999}]}'
        )
    answer = got.json()

    def statistics(name, rewards):
        function = {"std": partial(np.std, ddof=1)}.get(name) or getattr(np, name)
        return pytest.approx(function(rewards))

    names = ("mean", "max", "min", "median")
    for name in (*names, "std"):
        found = answer["agent_metrics"][f"{name}/reward"]
        assert found == statistics(name, [0.25, 0.5, 0.75, 2.0])
    assert answer["key_metrics"] == {"mean/reward": answer["agent_metrics"]["mean/reward"]}
    several, single = answer["group_level_metrics"]
    assert (several["_ng_task_index"], single["_ng_task_index"]) == (1, 3)
    for name in names:
        assert several[f"{name}/reward"] == statistics(name, [0.25, 0.75, 2.0])
        assert single[f"{name}/reward"] == 0.5
    assert "std/reward" not in single
    assert empty.json() == {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}
    for refused, field in ((odd, "verify_responses[0].reward"), (huge, "verify_responses[0]")):
        failure = http_failure(refused)
        assert failure.code == "invalid_request"
        assert failure.field is None or failure.field.startswith(field)


async def test_llama_factory_gets_scores_or_what_it_cannot_take_for_some():
    def get_rewards_from_server(answer):  # reads the body, whatever its status
        return json.loads(answer.text)["scores"]

    async with serving(Scores({"p no": error_of(Code.TEXT_TOO_LONG)})) as wires:

        async def asked(path, messages):
            payload = {"model": "model", "messages": messages}
            return await wires.http.post(path, json=payload)

        for path in ("/v1/score/evaluation", "/runs/mine/v1/score/evaluation"):
            answer = await asked(path, ["ab", "c", "ab"])
            assert get_rewards_from_server(answer) == [2.1, 1.1, 2.1]
            assert answer.json()["object"] == "score.evaluation"
            assert {one.special_tokens for one in sent(wires.application)} == {False}
        assert get_rewards_from_server(await asked("/v1/score/evaluation", [])) == []
        for answer in (await asked("/v1/score/evaluation", ["ab", "p no"]),
                       await asked("/v1/score/evaluation", [1])):  # fmt: skip
            with pytest.raises(KeyError, match="scores"):
                get_rewards_from_server(answer)
        assert http_failure(answer).field == "messages[0]"


async def test_nemo_gym_s_tools_are_turns():
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 2}'}
    output = [
        {"type": "reasoning", "summary": []},
        {**SAID, "content": [{"type": "output_text", "text": one} for one in ("Let me ", "see.")]},
        call,
        {**call, "call_id": "c2", "arguments": "no json"},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
        SAID,
    ]
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
    asked = {"instructions": "Be brief.", "input": "2 + 2?", "tools": [tool]}
    async with serving(Scores()) as wires:
        body = {"responses_create_params": asked, "response": {"output": output}}
        assert (await wires.http.post("/verify", json=body)).status_code == 200
        (one,) = sent(wires.application)
    turns = one.messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert [turn.content for turn in turns] == ["Be brief.", "2 + 2?", "Let me see.", "4", "Yo."]
    assert json.loads(turns[2].tool_calls or "") == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}},
        {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "no json"}},
    ]
    assert turns[3].tool_call_id == "c1"
    function = {"name": "add", "parameters": {"type": "object"}}
    assert json.loads(one.tools or "") == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("asked", "output", "field"),
    [
        ({"input": 7}, [SAID], "responses_create_params.input"),
        ({}, [SAID], "responses_create_params.input"),
        ({"input": ["Hi"]}, [SAID], "responses_create_params.input[0]"),
        (ASKED, None, "response.output"),
        (ASKED, [{"type": "web_search_call"}], "response.output[0]"),
        (
            ASKED,
            [{**SAID, "content": [{"type": "input_image", "image_url": "x"}]}],
            "response.output[0].content[0]",
        ),
        ({**ASKED, "tools": [{"type": "web_search"}]}, [SAID], "responses_create_params.tools[0]"),
    ],
)
async def test_what_is_no_conversation_is_named(asked, output, field):
    async with serving() as wires:
        body = {"responses_create_params": asked, "response": {"output": output}}
        refused = http_failure(await wires.http.post("/verify", json=body))
        assert (refused.code, refused.field, refused.status) == ("text_invalid", field, 400)
        assert wires.application.calls == []


@pytest.mark.parametrize("code", [Code.TEXT_TOO_LONG, Code.REWARD_NOT_FINITE, Code.COMPUTE_FAILED])
async def test_one_sample_without_a_reward_leaves_the_call_without_any(code):
    application = Scores({"p no": error_of(code)})
    async with serving(application) as wires:
        body = {"query": ["p yes", "p no"], "prompts": ["p ", "p "]}
        refused = http_failure(await wires.http.post("/get_reward", json=body))
        assert (refused.code, refused.status) == (code.value, TABLE[code].http)
        assert refused.field == "query[1]"
        assert refused.message == "query[1] has no reward: so it is"
        assert (refused.pause is not None) == TABLE[code].retryable
        told = http_failure(await wires.http.post("/classify", json={"input": ["a", "p no"]}))
        assert told.field == "input[1]"


async def test_a_run_of_the_policy_s_states_is_refused_with_the_way_out():
    application = Scores({"a b": error_of(Code.FEEDBACK_MISSING)})
    async with serving(application) as wires:
        refused = http_failure(await wires.http.post("/runs/mine/slime", json=BODIES["/slime"]))
    assert (refused.code, refused.status) == ("feedback_missing", 400)
    for word in ("'mine'", "backbone or none", "--compat-run", "/v1/runs/mine/score"):
        assert word in refused.message


@pytest.mark.parametrize("path", PATHS)
async def test_what_passes_is_never_a_4xx(path):
    async with serving() as wires:
        for code, row in TABLE.items():
            wires.application.error = Problem(code, "so “it” is", field="a")
            refused = http_failure(await wires.http.post(path, json=BODIES[path]))
            assert refused.code == code.value
            assert refused.status == status_of(code)
            assert refused.status == (503 if row.retryable and row.http < 500 else row.http)
            assert (refused.pause is not None) == row.retryable


@pytest.mark.parametrize("path", PATHS)
async def test_overload_is_503_before_the_body_is_read(path):
    requests, budget = RequestLimit(1), ByteBudget(4096)
    async with serving(requests=requests, budget=budget) as wires:
        wires.application.full = True
        refused = http_failure(await wires.http.post(path, json=BODIES[path]))
        assert (refused.code, refused.status, refused.pause) == ("overloaded", 503, 1)
        wires.application.full = False
        with requests.hold():
            refused = http_failure(await wires.http.post(path, json=BODIES[path]))
            assert (refused.code, refused.status) == ("overloaded", 503)
        async with budget.hold(4090, wait=False):
            refused = http_failure(await wires.http.post(path, json=BODIES[path]))
            assert (refused.code, refused.status) == ("overloaded", 503)
        assert wires.application.calls == []
        # The native side keeps its own status for the same.
        wires.application.full = True
        native = http_failure(await wires.http.post("/v1/score", json={"samples": []}))
        assert (native.code, native.status) == ("overloaded", 429)


@pytest.mark.parametrize("path", [*PATHS, "/seed_session"])
async def test_bodies_have_the_bounds_of_the_native_routes(path):
    async with serving(max_body_bytes=1000) as wires:
        got = await wires.http.post(path, content=b" " * 1001)
        assert (http_failure(got).code, got.status_code) == ("too_large", 413)
        got = await wires.http.post(path, content=b"{", headers={"content-type": "text/plain"})
        assert (http_failure(got).code, got.status_code) == ("unsupported_media", 415)
        got = await wires.http.post(path, content=b"{")
        assert (http_failure(got).code, got.status_code) == ("invalid_request", 400)
        got = await wires.http.get(path)
        assert (http_failure(got).code, got.status_code) == ("method_not_allowed", 405)


@pytest.mark.parametrize("path", PATHS)
async def test_a_call_past_its_time_is_given_up(path):
    async with serving() as wires:
        wires.application.score_seconds = 30
        given = {"json": BODIES[path], "headers": {"X-Request-Timeout": "0.05"}}
        refused = http_failure(await wires.http.post(path, **given))
        assert (refused.code, refused.status) == ("deadline_exceeded", 504)
        assert wires.application.cancelled == ["score"]


async def test_many_texts_are_named_as_one_is():
    texts = [f"text {number} " + "x" * 90 for number in range(800)]
    async with serving(Scores()) as wires:
        many = await wires.http.post("/classify", json={"input": texts})
        assert len(many.request.content) > SMALL_BYTES
        assert [one["probs"][0] for one in many.json()["data"]] == [len(one) + 0.1 for one in texts]
        ids = [one.id for one in sent(wires.application)]
        await wires.http.post("/classify", json={"input": texts[7]})
        assert [one.id for one in sent(wires.application)] == [ids[7]]


async def test_a_trainer_that_hangs_up_gives_up_its_score():
    application = FakeApplication()
    application.score_seconds = 30
    app = build_app(application, max_body_bytes=1000)
    body = json.dumps(BODIES["/slime"]).encode()
    pieces = [{"type": "http.request", "body": body, "more_body": False}]
    answered = []

    async def receive():
        if pieces:
            return pieces.pop()
        await application.begun.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        answered.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": "/slime", "raw_path": b"/slime", "query_string": b"", "root_path": "",
        "headers": [(b"content-length", str(len(body)).encode())],
    }  # fmt: skip
    await app(scope, receive, send)
    assert answered == []
    assert application.cancelled == ["score"]


async def test_our_own_bug_is_a_503_that_may_pass(caplog):
    async with serving() as wires:
        wires.application.error = ZeroDivisionError("ours")
        refused = http_failure(await wires.http.post("/slime", json=BODIES["/slime"]))
        assert (refused.code, refused.status) == ("compute_failed", 503)
    assert "ours" in caplog.text


@pytest.mark.parametrize("path", PATHS)
async def test_keys_that_nobody_knows_pass(path):
    async with serving() as wires:
        assert (await wires.http.post(path, json={**BODIES[path], "new": 1})).status_code == 200


async def test_a_server_may_name_the_run_for_its_root():
    async with serving(Scores(), compat_run="mine") as wires:
        application = wires.application
        for path in PATHS:
            for at, run in (("", "mine"), ("/runs/other", "other")):
                await wires.http.post(f"{at}{path}", json=BODIES[path])
                assert [call[1] for call in application.calls if call[0] == "score"][-1] == run
        await wires.http.post("/v1/score", json={"samples": []})
        assert application.calls[-1][1] is None


async def test_callers_at_once_are_scored_at_once():
    """The device batches across requests: nothing here may wait for another call."""
    async with serving() as wires:
        wires.application.score_seconds = 0.01
        asked = [wires.http.post("/slime", json=BODIES["/slime"]) for _ in range(20)]
        before = asyncio.gather(*asked)
        await wires.application.begun.wait()
        while len(wires.application.calls) < 20:
            await asyncio.sleep(0)
        assert [one.json() for one in await before] == [0.25] * 20


@pytest.mark.parametrize("model", MESSAGES, ids=lambda one: one.__name__)
def test_examples_are_valid_requests(model):
    assert parse(model, example_of(model))


OPTIONS = {
    "use_activation": (False, True),
    "activation": (False, True),
    "softmax": (False, True),
    "normalize": (False, True),
    "dimensions": (1, 64),
    "padding": ("do_not_pad", "max_length"),
    "add_generation_prompt": (False, True),
    "continue_final_message": (False, True),
    "chat_template": (None, "{{ messages }}"),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "embed_dtype": ("float32", "bfloat16"),
    "endianness": ("little", "big"),
    "lora_path": (None, "adapter"),
    "embed_overrides": (None, [[[0.5]]]),
    "input_ids": (None, [1, 2]),
    "input_embeds": (None, [[0.5]]),
    "image_data": (None, "data:image/png;base64,"),
    "audio_data": (None, "a.wav"),
    "video_data": (None, "a.mp4"),
}


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings"])
@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option_that_is_not_heeded_is_refused_with_what_to_send(path, name):
    as_here, otherwise = OPTIONS[name]
    async with serving(Scores()) as wires:
        for value in (None, as_here):
            answer = await wires.http.post(path, json={"input": "ab", name: value})
            assert answer.is_success, answer.text
        refused = http_failure(await wires.http.post(path, json={"input": "ab", name: otherwise}))
    assert (refused.code, refused.field, refused.status) == ("invalid_request", name, 400)
    assert "leave it out" in refused.message
    assert ("or send" in refused.message) == (as_here is not None)


def test_every_option_is_tried():
    assert set(OPTIONS) | {"truncate_prompt_tokens"} == set(EngineOptions.model_fields)


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings"])
async def test_what_cannot_change_a_reward_passes(path):
    more = {
        "user": "u", "priority": 3, "rid": "r", "request_id": "r", "cache_salt": "s",
        "return_token_ids": True, "of_a_later_version": {},
    }  # fmt: skip
    async with serving(Scores()) as wires:
        assert (await wires.http.post(path, json={"input": "ab", **more})).is_success


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings"])
async def test_special_tokens_are_added_as_asked(path):
    async with serving(Scores()) as wires:
        for given, special in ((None, None), (True, None), (False, False)):
            body = {"input": ["ab", "c"], "add_special_tokens": given}
            assert (await wires.http.post(path, json=body)).is_success
            assert {one.special_tokens for one in sent(wires.application)} == {special}
        ids = {"input": [[5, 6], [7]], "add_special_tokens": False}  # they are taken as they are
        assert (await wires.http.post(path, json=ids)).is_success
        assert {one.special_tokens for one in sent(wires.application)} == {None}


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings"])
async def test_messages_go_through_the_chat_template(path):
    parts = [{"type": "text", "text": "Hi, "}, {"type": "text", "text": "you."}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yo."}]
    async with serving(Scores()) as wires:
        assert (await wires.http.post(path, json={"messages": turns})).is_success
        (one,) = sent(wires.application)
        assert [turn.content for turn in one.messages] == ["Hi, you.", "Yo."]
        assert (one.prompt, one.format, one.special_tokens) == (None, "chat", None)
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, turns[1]]
        for body, field in (
            ({"messages": turns, "input": "ab"}, "input"),
            ({}, "input"),
            ({"messages": turns, "add_special_tokens": True}, "add_special_tokens"),
            ({"messages": image}, "messages[0].content[0]"),
            ({"messages": ["Hi"]}, "messages[0]"),
            ({"messages": [{"role": "user", "contents": "Hi"}]}, "messages[0].contents"),
        ):
            refused = http_failure(await wires.http.post(path, json=body))
            assert refused.field == field, refused
            assert refused.status == 400


async def test_an_error_of_a_conversation_names_messages():
    class Refuses(Scores):
        def _score(self, sample):
            return contract.ScoreOut(id=sample.id, error=error_of(Code.NO_CHAT_TEMPLATE))

    async with serving(Refuses()) as wires:
        body = {"messages": [{"role": "assistant", "content": "Yo."}]}
        refused = http_failure(await wires.http.post("/classify", json=body))
    assert (refused.code, refused.field) == ("no_chat_template", "messages")


@pytest.mark.parametrize("path", PATHS)
async def test_a_slash_at_the_end_changes_nothing(path):
    """A redirect would lose the body in some clients, and turn POST into GET in others."""
    async with serving(Scores()) as wires:
        answers = [await wires.http.post(one, json=BODIES[path]) for one in (path, f"{path}/")]
        assert [one.status_code for one in answers] == [200, 200]
        calls = [call for call in wires.application.calls if call[0] == "score"]
        assert calls[0] == calls[1]


async def test_whether_the_server_is_there_is_asked_as_of_vllm():
    async with serving() as wires:
        for path in ("/health", "/runs/mine/health", "/health/"):
            answer = await wires.http.get(path)
            assert (answer.status_code, answer.content) == (200, b"")
        wires.application.ready = False
        refused = http_failure(await wires.http.get("/health"))
        assert (refused.code, refused.status) == ("not_ready", 503)
        wires.application.ready = True
        listed = (await wires.http.get("/v1/models")).json()
        assert listed["object"] == "list"
        (model,) = listed["data"]
        server = wires.application.server()
        assert (model["id"], model["object"]) == (server.model, "model")
        assert model["max_model_len"] == server.max_length
        assert (await wires.http.get("/runs/mine/v1/models")).json() == listed
        # A name that is no run's is an error when a trainer asks for the models, not at its first
        # reward.
        wires.application.error = Problem(Code.UNKNOWN_RUN, "there is no run 'mine'")
        assert (await wires.http.get("/runs/mine/v1/models")).status_code == 404
