"""verl's custom function and reward manager: called as its reward loop calls them."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import subprocess
import sys

import pytest

from r2m_client import Overloaded, Retry, SamplesFailed
from r2m_client.integrations import verl
from r2m_client.integrations._loops import Address, LoopClients
from r2m_client.testing import FakeServer

ROLLOUT = {"data_source": "any", "solution_str": "It is four.", "ground_truth": "4"}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]


def length(sample, head):
    text = sample.messages[-1]["content"] if sample.messages else sample.response
    return float(len(text))


@pytest.fixture
def fake(monkeypatch):
    """A server of which verl's functions know by its address."""
    server = FakeServer(length)
    opened = []

    def opens(address):
        client = server.async_client(timeout=address.timeout, retries=Retry(3))
        opened.append((address, client))
        return client

    server.opened = opened
    monkeypatch.setattr(verl.clients, "opens", opens)
    for name in ("R2M_URL", "R2M_RUN", "R2M_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return server


def run_of(server, name, **settings):
    with server.client() as client:
        client.create_run(name, **{"feedback": "backbone", "method": {"width": 8}, **settings})


class Tokenizer:
    """Words are letters; 0 pads."""

    def decode(self, ids, skip_special_tokens=False):
        assert skip_special_tokens
        return "".join(chr(one) for one in ids)


class Proto:
    """verl's DataProto, as far as a reward manager looks at it."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        return self.rows[item]


class Row:
    def __init__(self, response, *, width=16, prompt=4, **more):
        ids = [ord(letter) for letter in response]
        padding = width - len(ids)
        self.batch = {
            "responses": [*ids, *[0] * padding],
            "attention_mask": [*[1] * prompt, *[1] * len(ids), *[0] * padding],
        }
        self.non_tensor_batch = {"raw_prompt": TURNS, "data_source": "any", **more}


def test_a_function_as_verl_calls_it(fake):
    # verl binds reward_kwargs with a partial, and looks whether what it got is asynchronous.
    bound = functools.partial(verl.compute_score, url="http://one", run="mine")
    assert inspect.iscoroutinefunction(bound)
    run_of(fake, "mine")
    scored = asyncio.run(
        bound(**ROLLOUT, extra_info={"question": "2 + 2?"}, reward_router_address="unused:1")
    )
    assert scored == {"score": 11.0, "vanilla_reward": 11.0, "tokens": 6, "head": 0, "omega": 0.6}
    (call,) = [one for one in fake.calls if one.method == "score"]
    assert call.request["run"] == "mine"
    (sample,) = call.request["samples"]
    assert (sample["prompt"], sample["response"]) == ("2 + 2?", "It is four.")


def test_without_a_run_it_is_the_frozen_model_s(fake, monkeypatch):
    monkeypatch.setenv("R2M_URL", "http://two")
    scored = asyncio.run(verl.compute_score(**ROLLOUT, extra_info={"prompt": "2 + 2?"}))
    assert set(scored) == {"score", "vanilla_reward", "tokens"}
    assert fake.opened[0][0] == Address("http://two", None, 300.0)
    monkeypatch.setenv("R2M_RUN", "other")
    monkeypatch.setenv("R2M_TIMEOUT", "20")
    assert Address.of() == Address("http://two", "other", 20.0)
    assert Address.of("http://three", "mine", 5) == Address("http://three", "mine", 5)


def test_turns_and_other_keys(fake):
    info = {"asked": TURNS, "question": "not this one"}
    ask = functools.partial(verl.compute_score, url="http://one")
    asyncio.run(ask(**ROLLOUT, extra_info=info, prompt_key="asked"))
    (sample,) = fake.calls[-1].request["samples"]
    assert sample["messages"] == [*TURNS, {"role": "assistant", "content": "It is four."}]
    asyncio.run(ask(**ROLLOUT, extra_info=info, format="raw"))
    (sample,) = fake.calls[-1].request["samples"]
    assert (sample["prompt"], sample["format"]) == ("not this one", "raw")


@pytest.mark.parametrize("info", [None, {}, {"answer": "4", "prompt": None}])
def test_a_prompt_that_is_missing_is_named_and_nothing_is_sent(fake, info):
    with pytest.raises(ValueError, match=r"'prompt' or 'question'.*RewardManager"):
        asyncio.run(verl.compute_score(**ROLLOUT, extra_info=info, url="http://one"))
    with pytest.raises(ValueError, match="'asked'"):
        asyncio.run(
            verl.compute_score(**ROLLOUT, extra_info=info, url="http://one", prompt_key="asked")
        )
    assert fake.calls == []


def test_without_an_address_it_says_which(fake):
    with pytest.raises(ValueError, match="R2M_URL"):
        asyncio.run(verl.compute_score(**ROLLOUT, extra_info={"prompt": "p"}))
    with pytest.raises(ValueError, match="R2M_URL"):
        verl.RewardManager(None, Tokenizer())


def test_what_passes_is_repeated_and_what_does_not_is_raised(fake):
    ask = functools.partial(verl.compute_score, url="http://one", extra_info={"prompt": "2 + 2?"})
    fake.fail_next("overloaded", times=2)
    assert asyncio.run(ask(**ROLLOUT))["score"] == 11.0
    fake.fail_next("overloaded", times=9)
    with pytest.raises(Overloaded):
        asyncio.run(ask(**ROLLOUT))


def test_a_sample_without_a_reward_raises_and_is_no_number(fake):
    ask = functools.partial(verl.compute_score, url="http://one", extra_info={"prompt": "2 + 2?"})
    with pytest.raises(SamplesFailed, match="text_invalid"):
        asyncio.run(ask(**{**ROLLOUT, "solution_str": "half \ud83d"}))
    run_of(fake, "policy", feedback="policy", policy_hidden_size=4)
    with pytest.raises(SamplesFailed, match="feedback_missing"):
        asyncio.run(ask(**ROLLOUT, run="policy"))


@pytest.fixture
def manager(fake, monkeypatch):
    monkeypatch.setenv("R2M_URL", "http://one")
    monkeypatch.setenv("R2M_RUN", "mine")
    run_of(fake, "mine")
    # As verl makes one: by position or by name, with more than is needed.
    return verl.RewardManager(
        config=None,
        tokenizer=Tokenizer(),
        compute_score=None,
        reward_router_address=None,
        reward_model_tokenizer=None,
    )


def test_a_manager_reads_the_rollout_and_the_conversation(fake, manager):
    found = asyncio.run(manager.run_single(Proto([Row("Four.")])))
    assert found["reward_score"] == 5.0
    assert found["reward_extra_info"] == {
        "vanilla_reward": 5.0, "tokens": 8, "head": 0, "omega": 0.6,
    }  # fmt: skip
    (sample,) = fake.calls[-1].request["samples"]
    assert sample["messages"] == [*TURNS, {"role": "assistant", "content": "Four."}]
    # Of several sequences of one rollout, the last one.
    found = asyncio.run(manager.run_single(Proto([Row("One."), Row("Last one.")])))
    assert found["reward_score"] == 9.0


def test_a_full_response_has_no_padding(manager):
    assert asyncio.run(manager.run_single(Proto([Row("x" * 16)])))["reward_score"] == 16.0


def test_a_length_that_verl_tells_counts_more_than_the_mask(manager):
    # Of outputs of 5 + 3 and 10 + 2 tokens, padded together to 12: the first one's mask.
    row = Row("abc", width=3, prompt=5, response_len=3)
    row.batch["attention_mask"] += [0] * 4
    assert asyncio.run(manager.run_single(Proto([row])))["reward_score"] == 3.0


def test_a_batch_without_its_conversation_says_how_to_keep_it(manager):
    with pytest.raises(ValueError, match="return_raw_chat"):
        asyncio.run(manager.run_single(Proto([Row("Four.", raw_prompt=None)])))


def test_many_at_once_share_a_client_and_give_the_same_keys(fake, manager):
    async def all_of_them():
        rows = [Proto([Row("x" * n)]) for n in range(1, 17)]
        return await asyncio.gather(*(manager.run_single(row) for row in rows))

    found = asyncio.run(all_of_them())
    assert [one["reward_score"] for one in found] == [float(n) for n in range(1, 17)]
    assert len({tuple(one["reward_extra_info"]) for one in found}) == 1
    assert len(fake.opened) == 1


def test_each_loop_has_a_client_which_ends_with_it():
    ended = []

    class One:
        def __init__(self, address):
            self.address = address

        async def __aenter__(self):
            return self

        async def __aexit__(self, *raised):
            ended.append(self)

    held = LoopClients(One)
    here, there = Address("http://a", None, 1), Address("http://b", "r", 1)

    async def two():
        first = await held.get(here)
        assert await held.get(Address("http://a", None, 1)) is first
        assert await held.get(there) is not first
        assert ended == before
        return first

    before = []
    one = asyncio.run(two())
    assert {each.address for each in ended} == {here, there}
    before = list(ended)
    assert asyncio.run(two()) is not one
    assert len(ended) == 4

    async def by_hand():
        first = await held.get(here)
        await held.close()
        assert ended[-1] is first
        assert await held.get(here) is not first
        await held.close()

    asyncio.run(by_hand())
    assert len(ended) == 6


def test_verl_s_base_class_is_taken_where_it_is(monkeypatch):
    class Base:
        def __init__(self, config, tokenizer, of_some_version):
            raise AssertionError("its arguments differ from version to version")

        @staticmethod
        def assemble(scores):
            return scores

    made = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("base", None))
    made.RewardManagerBase = Base
    name = "verl.experimental.reward_loop.reward_manager.base"
    for depth in range(1, 5):
        parent = ".".join(name.split(".")[:depth])
        package = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(parent, None))
        package.__path__ = []
        monkeypatch.setitem(sys.modules, parent, package)
    monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setenv("R2M_URL", "http://one")
    fresh = importlib.util.find_spec("r2m_client.integrations.verl")
    module = importlib.util.module_from_spec(fresh)
    fresh.loader.exec_module(module)
    manager = module.RewardManager(config=None, tokenizer=Tokenizer(), compute_score=None)
    assert isinstance(manager, Base)
    assert manager.assemble([1.0]) == [1.0]


def test_it_needs_nothing_but_the_client():
    code = (
        "import sys; from r2m_client.integrations import verl; "
        "print(sorted({'torch', 'verl', 'ray', 'httpx', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
