"""Trainers' own calls against a real server: the rewards are those of the native interface."""

import asyncio
import dataclasses
import pathlib
import sys

import httpx
import pytest
from support import processes
from support.serving import running

from r2m_client import Client, Label, Sample
from r2m_client.integrations.verl import compute_score

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "transports"))

from compat_trainers import OpenRLHF, Slime, Verl

PROMPTS = ["Q: What is the capital of France?\nA: ", "Q: How do I bake bread?\nA: "]
RESPONSES = ["Paris.", "Mix flour, water and salt.", "I do not know, sorry.", "</s>"]
BACKBONE = {"width": 16, "learning_rate": 1e-2, "profile": "labelled"}


async def never(seconds):
    raise AssertionError("nothing failed, so nobody waits")


@pytest.fixture(scope="module")
def exact(reward_model, backbone, tmp_path_factory):
    """A server whose rewards do not depend on what else is in a batch."""
    state = tmp_path_factory.mktemp("exact")
    with running(reward_model, state, backbone=backbone, batch_items=1, compat_run="root") as one:
        yield one


@pytest.fixture(scope="module")
def native(exact):
    with Client(exact.urls["http"], retries=0) as client:
        client.create_run("root", feedback="backbone", method=BACKBONE)
        client.create_run("other", feedback="none", method={"width": 16})
        client.create_run("policy", policy_hidden_size=8, method={"width": 16})
        yield client


def samples():
    return [
        Sample(f"{p}-{r}", prompt, response, format="raw")
        for p, prompt in enumerate(PROMPTS)
        for r, response in enumerate(RESPONSES)
    ]


def asked(url, run=""):
    """What each trainer makes of all samples, by asking for one at a time, all at once."""
    base = url + (f"/runs/{run}" if run else "")

    async def all_of_them():
        async with httpx.AsyncClient(timeout=60) as http:
            openrlhf = OpenRLHF(http, [f"{base}/get_reward"], never)
            slime = Slime(http, f"{base}/slime", never)
            engines = [Verl(http, base, engine, never) for engine in ("vllm", "sglang")]
            sent = samples()
            work = {
                "openrlhf": [
                    openrlhf.sample(one.prompt + one.response, one.prompt, None) for one in sent
                ],
                "slime": [slime.ask(one.prompt, one.response, "label") for one in sent],
                "vllm": [engines[0].ask(one.prompt + one.response) for one in sent],
                "sglang": [engines[1].ask(one.prompt + one.response) for one in sent],
            }
            found = {name: await asyncio.gather(*calls) for name, calls in work.items()}
        logs = [more for _, more in found["openrlhf"]]
        return {**found, "openrlhf": [reward for reward, _ in found["openrlhf"]]}, logs

    return asyncio.run(all_of_them())


def test_every_dialect_gives_the_native_rewards_bit_for_bit(exact, native):
    for run in ("root", "other"):
        scored = native.score(samples(), run=run).raise_for_errors()
        found, logs = asked(exact.urls["http"], "" if run == "root" else run)
        for name, rewards in found.items():
            assert rewards == scored.rewards, (run, name)
        for one, score in zip(logs, scored.scores, strict=True):
            assert one == {
                "truncated": 0,
                "vanilla_reward": score.vanilla_reward,
                "tokens": score.tokens,
                "head": scored.head,
                "omega": scored.omega,
            }


def test_without_a_run_they_are_the_frozen_model_s(server):
    with Client(server.urls["http"], retries=0) as client:
        vanilla = client.score(samples()).raise_for_errors().rewards
    found, logs = asked(server.urls["http"])
    for name, rewards in found.items():
        assert rewards == pytest.approx(vanilla, abs=1e-5), name
    assert all(set(one) == {"vanilla_reward", "tokens", "truncated"} for one in logs)


def test_failures_say_what_to_do(exact, native):
    with httpx.Client(base_url=exact.urls["http"]) as http:
        body = {"prompt": PROMPTS[0], "response": RESPONSES[0], "label": None}
        refused = http.post("/runs/policy/slime", json=body)
        assert refused.status_code == 400
        assert "feedback backbone or none" in refused.json()["error"]["message"]
        refused = http.post("/runs/nobody/slime", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_run")
        long = "the sea is wide and blue " * 40
        refused = http.post("/classify", json={"input": ["short", long]})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "text_too_long"
        assert refused.json()["error"]["message"].startswith("input[1] has no reward: ")
        # As OpenRLHF's own server does, this route cuts; its answer says so.
        cut = http.post("/get_reward", json={"query": ["short", long]}).json()["extra_logs"]
        assert cut["truncated"][0] == 0 < cut["truncated"][1]
        nothing = http.post("/slime", json={"prompt": "", "response": ""})
        assert (nothing.status_code, nothing.json()["error"]["code"]) == (400, "text_empty")


def test_nemo_gym_s_conversation_is_read_through_the_chat_template(exact, native):
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Paris."}],
    }
    body = {
        "responses_create_params": {"input": [{"role": "user", "content": "The capital?"}]},
        "response": {"output": [said]},
    }
    with httpx.Client(base_url=exact.urls["http"]) as http:
        got = http.post("/runs/root/verify", json=body)
    answer = got.json()
    assert "backbone" in got.headers["server-timing"]
    chat = native.score([Sample("a", "The capital?", "Paris.")], run="root")
    assert answer == {**body, "reward": chat.rewards[0]}


def test_a_run_learns_from_labels_that_come_beside_the_trainer(exact, native):
    method = {**BACKBONE, "audit_rate": 1.0, "judge_share": 0.0}
    native.create_run("beside", feedback="backbone", method=method)
    url = exact.urls["http"]
    before, _ = asked(url, "beside")
    waiting = native.samples("beside", waiting=True).samples
    # One sample a text with a known prompt, however often and by whom it was asked for; the calls
    # that bring no prompt are known by their whole text, OpenRLHF's have no special tokens added.
    texts = [(one.text.get("prompt", ""), one.text["response"]) for one in waiting]
    bare = [one.text.get("special_tokens") for one in waiting]
    assert len(texts) == len(set(zip(texts, bare, strict=True))) == 3 * len(samples())
    good = {prompt + "Paris." + eos for prompt in PROMPTS for eos in ("", "</s>")}
    labels = [
        Label(id=one.id, grade=float("".join(text) in good), source="judge")
        for one, text in zip(waiting, texts, strict=True)
        if text[0]
    ]
    assert not [one for one in native.add_labels("beside", labels).labels if one.error]
    step = native.run("beside").next_step
    aligned = native.align("beside", step=step, groups=[])
    assert aligned.groups.replayed == len(PROMPTS)
    assert aligned.verdict == "accepted", aligned.reason
    after, logs = asked(url, "beside")
    assert {one["head"] for one in logs} == {aligned.head}
    assert after["openrlhf"] == native.score(samples(), run="beside").rewards
    assert after["openrlhf"] != before["openrlhf"]


def test_the_same_text_may_come_twice_in_a_batch(exact, native):
    sent = [*samples(), *samples()]
    with httpx.Client(base_url=exact.urls["http"]) as http:
        body = {
            "query": [one.prompt + one.response for one in sent],
            "prompts": [one.prompt for one in sent],
        }
        answer = http.post("/get_reward", json=body).json()
    one_each = [dataclasses.replace(one, id=f"n{n}") for n, one in enumerate(sent)]
    assert answer["rewards"] == native.score(one_each, run="root").rewards


def test_verl_s_function_gives_the_native_reward(exact, native, monkeypatch):
    for name in ("R2M_URL", "R2M_RUN", "R2M_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)

    async def all_of_them():
        asks = [
            compute_score(
                data_source="any",
                solution_str=one.response,
                ground_truth=None,
                extra_info={"prompt": one.prompt},
                url=exact.urls[kind],
                run="root",
                format="raw",
            )
            for one in samples()
            for kind in ("http", "grpc")
        ]
        return await asyncio.gather(*asks)

    rewards = [one["score"] for one in asyncio.run(all_of_them())]
    scored = native.score(samples(), run="root").rewards
    assert rewards[::2] == rewards[1::2] == scored


def test_texts_without_a_prompt_are_told_apart_by_all_of_them(exact, native):
    """Whether labels train or judge goes by the prompt; where none is known, not all go alike."""
    method = {**BACKBONE, "audit_rate": 1.0, "judge_share": 0.5}
    native.create_run("apart", feedback="backbone", method=method)
    texts = [f"The sea is {number} miles wide." for number in range(16)]
    with httpx.Client(base_url=exact.urls["http"]) as http:
        assert http.post("/runs/apart/classify", json={"input": texts}).is_success
    kept = native.samples("apart").samples
    assert len(kept) == len(texts)
    assert {one.use for one in kept} == {"train", "judge"}
    assert len({one.group for one in kept}) == len(texts)


def test_a_server_started_for_a_run_answers_at_its_root(reward_model, tmp_path):
    body = {"query": [PROMPTS[0] + RESPONSES[0]], "prompts": [PROMPTS[0]], "labels": [None]}
    with (
        processes.serving(reward_model, tmp_path / "state", "--compat-run", "mine") as process,
        httpx.Client(base_url=process.http) as http,
        Client(process.http) as client,
    ):
        refused = http.post("/get_reward", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_run")
        client.create_run("mine", feedback="none", method={"width": 16})
        answer = http.post("/get_reward", json=body).json()
        sample = Sample("a", PROMPTS[0], RESPONSES[0], format="raw")
        assert answer["rewards"] == client.score([sample], run="mine").rewards
        assert answer["extra_logs"]["head"] == [0]
