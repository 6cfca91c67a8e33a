"""`reward_function` as trainers call it, on a real server; its examples in docs/trainers.md."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import re
import socket
import subprocess
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support.processes import free_port
from support.serving import running

from r2m_client import Client, ConnectError, DeadlineError, Sample
from r2m_client.integrations import NoReward, reward_function

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
USER = [{"role": "user", "content": "2 + 2?"}]
ANSWER = [{"role": "assistant", "content": "Four."}]
LONG = "word " * 900


@pytest.fixture(scope="module")
def url(reward_model, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state")) as server:
        yield server.urls["http"]


@pytest.fixture(scope="module")
def vanilla(url):
    """The frozen reward model's reward of one text, asked for by itself."""
    with Client(url) as client:

        def reward(prompt, response, format="raw"):
            if not isinstance(prompt, str):
                sample = Sample("a", messages=[*prompt, *response])
            else:
                sample = Sample("a", prompt, response, format=format)
            (score,) = client.score([sample]).raise_for_errors().scores
            return pytest.approx(score.vanilla_reward, abs=1e-5)

        yield reward


def test_texts_turns_and_one_rollout(url, vanilla):
    reward = reward_function(url)
    prompts, completions = ["2 + 2? ", "Hi ", "2 + 2? "], ["Four.", "Hello!", "Four."]
    expected = [vanilla(*pair) for pair in zip(prompts, completions, strict=True)]
    assert reward(prompts, completions) == expected
    assert reward(prompts=prompts, completions=completions, completion_ids=[[1]] * 3) == expected
    assert reward("2 + 2? ", "Four.", [1, 2], [3], answer="4") == expected[0]
    chat = reward_function(url, text="chat")
    assert chat(["2 + 2?"], ["Four."]) == [vanilla("2 + 2?", "Four.", "chat")]
    for form in ((USER, ANSWER), (USER, "Four."), ("2 + 2?", ANSWER)):
        assert reward([form[0]], [form[1]]) == [vanilla(USER, ANSWER)]
    assert reward(USER, "Four.") == vanilla(USER, ANSWER)
    assert reward([], []) == []


def test_rewards_of_a_run_are_its_live_heads(url):
    with Client(url) as client:
        client.create_run("texts", feedback="backbone", method={"width": 16})
        client.create_run("states", policy_hidden_size=8)
        (score,) = client.score([Sample("a", "Hi ", "Hello!", format="raw")], run="texts").scores
    assert reward_function(url, "texts")("Hi ", "Hello!") == pytest.approx(score.reward, abs=1e-5)
    assert score.reward != pytest.approx(score.vanilla_reward, abs=1e-5)
    with pytest.raises(NoReward, match="rollout 0: feedback_missing"):
        reward_function(url, "states")("Hi ", "Hello!")
    with pytest.raises(NoReward, match="unknown_run"):
        reward_function(url, "nowhere")("Hi ", "Hello!")


def test_what_cannot_be_scored_is_raised_or_none(url, vanilla):
    prompts, completions = ["Hi "] * 3, ["Hello!", LONG, "Bye."]
    with pytest.raises(NoReward, match=r"1 of 3 rollouts have no reward; rollout 1: text_too_long"):
        reward_function(url)(prompts, completions)
    found = reward_function(url, unscorable="none")(prompts, completions)
    assert found == [vanilla("Hi ", "Hello!"), None, vanilla("Hi ", "Bye.")]


def test_no_failure_is_a_timeout_error():
    """AReaL answers 0 to a TimeoutError that a reward function raises."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        late = reward_function(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        gone = reward_function(f"http://127.0.0.1:{free_port()}", timeout=0.3)
        for reward, cause in ((late, DeadlineError), (gone, ConnectError)):
            with pytest.raises(NoReward) as caught:
                reward("Hi ", "Hello!")
            assert isinstance(caught.value.__cause__, cause)
            assert not isinstance(caught.value, TimeoutError | ConnectionError)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_processes_of_a_pool_call_it(url, vanilla, method):
    reward = reward_function(url, timeout=12)
    assert reward("Hi ", "Hello!") == vanilla("Hi ", "Hello!")  # the parent has a client, too
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        calls = [
            pool.submit(partial(reward, "Hi ", completion, [1], [2], answer="x"))
            for completion in ("Hello!", "Bye.", LONG)
        ]
        assert calls[0].result() == vanilla("Hi ", "Hello!")
        assert calls[1].result() == vanilla("Hi ", "Bye.")
        with pytest.raises(NoReward, match="text_too_long"):
            calls[2].result()


def test_it_needs_neither_torch_nor_a_network_to_be_made():
    code = (
        "import sys; from r2m_client.integrations import reward_function; "
        "reward_function('http://127.0.0.1:1'); "
        "assert not {'torch', 'transformers', 'httpx', 'grpc', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("wrong", [{"text": "both"}, {"unscorable": "zero"}, {"url": "ftp://x"}])
def test_settings_that_are_none(wrong):
    with pytest.raises(ValueError, match=r"neither|no server's URL"):
        reward_function(**{"url": "http://h", **wrong})


# ------------------------------------------------------------------ the page's examples


def example(name, url):
    (code,) = re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code.replace("http://127.0.0.1:8080", url), "docs/trainers.md", "exec"), names)
    return names


def stand_in(monkeypatch, name, **members):
    """A module of a trainer that is not installed here."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(
            sys.modules, ".".join(parts[:depth]), types.ModuleType(parts[depth - 1])
        )
    module = sys.modules[name]
    vars(module).update(members)
    for depth in range(1, len(parts)):
        setattr(
            sys.modules[".".join(parts[:depth])],
            parts[depth],
            sys.modules[".".join(parts[: depth + 1])],
        )
    return module


def test_the_plain_example(url, capsys, vanilla):
    names = example("reward-function", url)
    assert names["one"] == vanilla(USER, [{"role": "assistant", "content": "4."}])
    assert capsys.readouterr().out == "2\n"


def test_the_areal_example(url, vanilla):
    reward = example("areal", url)["reward_fn"]
    data = {"messages": USER, "answer": "4"}
    assert reward("<|user|>…", "Four.<|im_end|>", [1], [2], **data) == vanilla(USER, ANSWER)


def test_the_swift_example(url, vanilla, monkeypatch):
    orms = {}
    orm = type("ORM", (), {"__init__": lambda self, args=None, **_: None})
    stand_in(monkeypatch, "swift.rewards", ORM=orm, orms=orms)
    example("swift", url)
    reward = orms["r2m"](args=None)
    rewards = reward(["Four."], messages=[[*USER, *ANSWER]], trainer_state=None, prompt_id=["x"])
    assert rewards == [vanilla(USER, ANSWER)]


def test_the_skyrl_example(url, vanilla, monkeypatch):
    base = type("BaseTextEnv", (), {})
    stand_in(
        monkeypatch, "skyrl_gym.envs.base_text_env", BaseTextEnv=base, BaseTextEnvStepOutput=dict
    )
    env = example("skyrl", url)["R2MEnv"](env_config={}, extras={"reward_spec": None})
    assert env.init(USER) == (USER, {})
    step = env.step("Four.")
    assert (step["reward"], step["done"]) == (vanilla(USER, ANSWER), True)


def test_the_verifiers_example(url, vanilla, monkeypatch):
    def turn(values):
        return types.SimpleNamespace(model_dump=lambda exclude_none: values)

    class Task:
        def __class_getitem__(cls, _):
            return cls

    stand_in(
        monkeypatch, "verifiers.v1", Task=Task, TaskData=object, Trace=object,
        stop=lambda function: function, reward=lambda function: function,
    )  # fmt: skip
    task = example("verifiers", url)["R2MTask"]()
    trace = types.SimpleNamespace(
        messages=[turn(one) for one in (*USER, *ANSWER)], last_reply="Four.", num_turns=1
    )
    assert asyncio.run(task.r2m(trace)) == vanilla(USER, ANSWER)
    assert asyncio.run(task.single_turn(trace))
