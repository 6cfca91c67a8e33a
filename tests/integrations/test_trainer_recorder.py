"""OpenRLHF's subclasses with r2m_client.capture on a small policy: the states are its last ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from trainer_stands import Group, PolicyModelActor, RemoteExperienceMaker, padded, tokens_of
from transformers import AutoModelForCausalLM, LlamaConfig

from r2m_client.integrations import openrlhf
from r2m_client.integrations._ranks import Alone
from r2m_client.integrations._rollouts import RunFeedback, name_of
from r2m_client.testing import FakeServer

WIDTH = 16
TEXTS = ["one?a", "one?bcd", "two?ef", "two?ghij"]


class Passes(PolicyModelActor):
    """The stand-in's passes by a real model."""

    def forward(self, sequences, action_mask=None, attention_mask=None, **more):
        with torch.no_grad():
            return self.actor.model(input_ids=sequences, attention_mask=attention_mask).logits

    def fit(self, kl_ctl=0):
        with torch.no_grad():
            self.actor.model.model.norm.weight.mul_(1.5)
        self.trainer.replay_buffer.items.clear()
        return {}


class Actor(openrlhf.FeedbackActor, Passes):
    def r2m_batch(self, items):
        sequences, mask = padded([one.sequences.tolist() for one in items])
        return SimpleNamespace(sequences=sequences, attention_mask=mask, action_mask=None)


class Maker(openrlhf.FeedbackExperienceMaker, RemoteExperienceMaker):
    pass


@pytest.fixture
def actor():
    torch.manual_seed(0)
    made = Actor([])
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=256, num_hidden_layers=2, num_key_value_heads=2, pad_token_id=0, **sizes
    )
    made.actor = SimpleNamespace(model=AutoModelForCausalLM.from_config(config).eval())
    fake = FakeServer(lambda sample, head: float(len(sample.response)))
    client = fake.client(retries=0)
    client.create_run("run", policy_hidden_size=WIDTH, method={"width": 8})
    made.r2m_open = lambda: RunFeedback(client, "run", Alone())
    return made


def last_states(actor, text):
    """Of the text alone, without padding, as transformers gives them."""
    ids = torch.tensor([tokens_of(text)])
    with torch.no_grad():
        return actor.actor.model(ids, output_hidden_states=True).hidden_states[-1][0]


def test_states_are_the_policy_s_last_ones_at_score_and_at_align(actor, monkeypatch):
    sequences, mask = padded([tokens_of(one) for one in TEXTS])
    samples = SimpleNamespace(
        sequences=sequences,
        attention_mask=mask,
        action_mask=mask[:, 1:],
        prompts=["<s>" + one[:4] for one in TEXTS],
        rewards=torch.zeros(len(TEXTS)),
        info={},
    )
    (scored,) = Maker(Group([actor]), []).make_experience([samples])
    assert scored.rewards.tolist() == [1, 3, 2, 4]
    before = [last_states(actor, text) for text in TEXTS]
    kept = actor._feedback()._states
    for text, states in zip(TEXTS, before, strict=True):
        torch.testing.assert_close(kept[name_of(tokens_of(text))], states, atol=1e-5, rtol=1e-5)

    seen = {}
    aligned = RunFeedback._aligned

    def watched(self, rollouts, states):
        seen.update(states._states)
        return aligned(self, rollouts, states)

    monkeypatch.setattr(RunFeedback, "_aligned", watched)
    actor.append(samples)
    assert actor.fit()["r2m/groups"] == 2
    for text, old in zip(TEXTS, before, strict=True):
        states = seen[name_of(tokens_of(text))]
        torch.testing.assert_close(states, 1.5 * old, atol=1e-5, rtol=1e-5)
