"""Feedback from inside trainers: ids, groups, steps, and what is called when; on stand-ins.

What could not be run here, the trainers themselves on GPUs, docs/trainers.md says.
"""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from trainer_stands import (
    WIDTH,
    Group,
    PolicyModelActor,
    Recorder,
    RemoteExperienceMaker,
    Threads,
    Tokenizer,
    on_all,
    padded,
    tokens_of,
)

from r2m_client import NotFound, SamplesFailed
from r2m_client.integrations import openrlhf
from r2m_client.integrations._ranks import Alone, TorchRanks, ranks_here
from r2m_client.integrations._rollouts import (
    RunFeedback,
    captured,
    groups_of,
    name_of,
    real_tokens,
    rollouts_of,
)
from r2m_client.testing import FakeServer

PROMPTS = ["one?", "two?"]
ANSWERS = ["a", "bcd", "ef", "ghij"]
TEXTS = [prompt + answer for prompt in PROMPTS for answer in ANSWERS]


@pytest.fixture
def fake():
    """A server whose rewards are the responses' lengths, and more with each head."""
    server = FakeServer(lambda sample, head: len(sample.response) + 0.25 * head)
    with server.client() as client:
        client.create_run("run", policy_hidden_size=WIDTH, method={"width": 8})
    return server


def feedback(fake, ranks=None):
    return RunFeedback(fake.client(retries=0), "run", ranks or Alone())


def rollouts(texts=TEXTS):
    ids = [tokens_of(text) for text in texts]
    decode = functools.partial(Tokenizer().decode, skip_special_tokens=False)
    return ids, rollouts_of(ids, ["<s>" + text[:4] for text in texts], decode)


class Pass:
    """What was recorded of a pass over these tokens."""

    def __init__(self, ids, weight=1.0, width=WIDTH):
        self._ids, self._weight, self._width = ids, weight, width

    def token_ids(self):
        return [one and torch.tensor(one) for one in self._ids]

    def states(self):
        return [torch.full((len(one or [0]), self._width), self._weight) for one in self._ids]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_left_out_on_either_side(side):
    rows = [[5, 6, 7], [8], [9, 9]]
    assert real_tokens(*padded(rows, side)) == rows
    assert real_tokens([[5, 0]], [[1, 0]]) == [[5]]


def test_a_rollout_is_its_tokens_and_its_text():
    ids, found = rollouts(["one?a", "one?bcd"])
    first, second = found
    assert (first.prompt, first.response, first.tokens) == ("<s>one?", "a", 6)
    assert (first.group, first.id) == (second.group, name_of(ids[0]))
    assert first.id != second.id
    sample = first.sample([[0.0]])
    assert (sample.format, sample.tokens, sample.group) == ("raw", 6, first.group)
    # A text that does not begin with its prompt is read whole.
    (odd,) = rollouts_of([[1, 2]], ["elsewhere"], lambda tokens: "text")
    assert (odd.prompt, odd.response) == ("", "text")
    (bare,) = rollouts_of([[1, 2]], ["text"], lambda tokens: "text")
    assert (bare.prompt, bare.response) == ("", "text")


def test_groups_are_those_of_a_prompt_each_rollout_once():
    _, found = rollouts()
    groups = groups_of([found[4], *found, found[0]])
    assert [len(list(one.samples)) for one in groups] == [4, 4]
    assert [one.id for one in groups] == [found[4].group, found[0].group]


def test_states_are_kept_under_their_own_tokens(fake):
    ids, found = rollouts(TEXTS[:2])
    mine = feedback(fake)
    mine.keep(Pass([ids[1], ids[0]]))  # in whatever order the pass had them
    assert mine.score(found) == [1, 3]
    other = feedback(fake)
    other.keep(Pass([ids[0][1:], ids[1]]))
    with pytest.raises(ValueError, match="1 of 2 rollouts, the first of 6 tokens, have no rec"):
        other.score(found)
    with pytest.raises(ValueError, match="embeddings"):
        mine.keep(Pass([None]))
    mine.free()
    with pytest.raises(ValueError, match="2 of 2"):
        mine.score(found)
    assert mine.score([]) == []


def test_rewards_come_in_order_and_twins_get_the_same(fake):
    ids, found = rollouts()
    mine = feedback(fake)
    mine.keep(Pass(ids))
    assert mine.score([*found, found[0]]) == [1, 3, 2, 4, 1, 3, 2, 4, 1]
    with pytest.raises(ValueError, match="no recorded hidden states"):
        mine.score(rollouts(["one?unseen"])[1])


def test_one_sample_without_a_reward_leaves_the_step_without_any(fake):
    ids, found = rollouts(TEXTS[:2])
    mine = feedback(fake)
    mine.keep(Pass(ids, width=WIDTH + 1))
    with pytest.raises((SamplesFailed, ValueError)):
        mine.score(found)


def test_steps_are_the_servers_and_go_on_after_a_restart(fake):
    for first in (1, 3):
        mine = feedback(fake)
        for step in (first, first + 1):
            ids, found = rollouts()
            mine.keep(Pass(ids, step))
            assert mine.align(found)["r2m/head"] == step
            with pytest.raises(ValueError, match="no recorded"):  # states are let go of
                mine.align(found)
    with fake.client() as client:
        assert client.run("run").next_step == 5


def test_ranks_align_together_once(fake):
    world = Threads(2)

    def work(number):
        ids, found = rollouts(TEXTS[number::2])
        mine = feedback(fake, world.rank(number))
        mine.keep(Pass(ids))
        rewards = mine.score(found)
        return rewards, mine.align(found), mine.most(number + 3)

    (first, told, most), (second, also, same) = on_all(2, work)
    assert first == [1, 2, 1, 2]
    assert second == [3, 4, 3, 4]
    assert told == also
    assert told["r2m/groups"] == 2
    assert most == same == 4
    aligns = [one for one in fake.calls if one.method == "align"]
    assert {one.request["step"] for one in aligns} == {1}
    sizes = [len(group["samples"]) for group in aligns[0].request["groups"]]
    assert sizes == [4, 4]


def test_states_that_one_rank_lacks_stop_all_of_them(fake):
    world = Threads(2)

    def work(number):
        ids, found = rollouts(TEXTS[number::2])
        mine = feedback(fake, world.rank(number))
        mine.keep(Pass(ids if number == 0 else ids[1:]))
        return mine.align(found)

    assert [str(one)[:17] for one in on_all(2, work)] == ["1 of 4 rollouts, "] * 2


def test_a_refused_align_is_known_on_every_rank(fake):
    world = Threads(2)
    fake.fail_next("head_damaged", method="align")

    def work(number):
        ids, found = rollouts(TEXTS[number::2])
        mine = feedback(fake, world.rank(number))
        mine.keep(Pass(ids))
        return mine.align(found)

    first, second = on_all(2, work)
    assert "head_damaged" in str(first)
    assert isinstance(second, RuntimeError)
    assert "rank 0" in str(second)


def test_an_unknown_run_is_known_too(fake):
    mine = RunFeedback(fake.client(retries=0), "nobody", Alone())
    ids, found = rollouts()
    mine.keep(Pass(ids))
    with pytest.raises(NotFound):
        mine.align(found)


def test_a_model_is_given_its_hooks_once(monkeypatch):
    made = []

    class Once:
        def __init__(self, model):
            made.append(model)

        def recording(self):
            return f"the recording of {made[-1].name}"

    monkeypatch.setitem(sys.modules, "r2m_client.capture", SimpleNamespace(Recorder=Once))

    class Model:
        name = "a policy"

    model = Model()
    assert captured(model) == captured(model) == "the recording of a policy"
    assert made == [model]


def test_without_a_process_group_one_is_alone(tmp_path):
    assert isinstance(ranks_here(), Alone)
    import torch.distributed as distributed

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        ranks = ranks_here()
        assert isinstance(ranks, TorchRanks)
        assert ranks.main
        assert ranks.gather("a") == ["a"]
        assert ranks.broadcast({"b": 1}) == {"b": 1}
    finally:
        distributed.destroy_process_group()


# OpenRLHF


class Actor(openrlhf.FeedbackActor, PolicyModelActor):
    r2m_record = staticmethod(Recorder)

    def r2m_batch(self, items):
        sequences, mask = padded([one.sequences.tolist() for one in items])
        return SimpleNamespace(sequences=sequences, attention_mask=mask, action_mask=None)


class Maker(openrlhf.FeedbackExperienceMaker, RemoteExperienceMaker):
    pass


def experiences(texts=TEXTS, size=2):
    """Micro-batches as they come from the rollouts: with vanilla rewards."""
    found = []
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        sequences, mask = padded([tokens_of(one) for one in part])
        rewards = torch.full((len(part), 1), -1.0)
        found.append(
            SimpleNamespace(
                sequences=sequences,
                attention_mask=mask,
                action_mask=mask[:, 1:],
                prompts=["<s>" + one[:4] for one in part],
                rewards=rewards,
                info={"reward": rewards},
            )
        )
    return found


def actors(fake, events, count=1):
    world = Threads(count)
    made = []
    for number in range(count):
        one = Actor(events)
        ranks = world.rank(number) if count > 1 else Alone()
        one.r2m_open = functools.partial(feedback, fake, ranks)
        made.append(one)
    return made


def test_openrlhf_rewards_are_replaced_by_the_runs(fake):
    events = []
    maker = Maker(Group(actors(fake, events, 2)), events)
    samples = maker.make_experience(experiences())
    assert torch.cat([one.rewards for one in samples]).flatten().tolist() == [1, 3, 2, 4] * 2
    assert all(one.rewards.shape == (2, 1) for one in samples)
    assert all(one.info["reward"] is one.rewards for one in samples)
    assert events == ["forward"] * 4
    sent = [one for call in fake.calls[1:] for one in call.request["samples"]]
    assert {one["prompt"] for one in sent} == {"<s>one?", "<s>two?"}


def test_openrlhf_aligns_after_the_update_and_under_the_new_policy(fake):
    events = []
    (actor,) = actors(fake, events)
    maker = Maker(Group([actor]), events)
    heard = []
    for step in (1, 2):
        samples = maker.make_experience(experiences())
        for one in samples:
            actor.append(one)
        events.clear()
        before = len(fake.calls)
        status = actor.fit(kl_ctl=0.1)
        heard += [call.method for call in fake.calls[before:]]
        assert events == ["ppo_train", "clear", *["forward"] * 4]
        assert (status["policy_loss"], status["r2m/head"], status["r2m/groups"]) == (0.1, step, 2)
        assert actor.trainer.replay_buffer.items == []
    assert heard[:2] == ["run", "align"]
    assert heard.count("run") == 1


def test_openrlhf_s_states_at_align_are_the_updated_policy_s(fake):
    (actor,) = actors(fake, [])
    for one in experiences():
        actor.forward(one.sequences, one.action_mask, one.attention_mask)
        actor.append(one)
    kept = actor._feedback()._states
    seen = []
    real = RunFeedback._aligned

    def watched(self, found, states):
        seen.extend(states._states[one.id].max().item() / one_token(one) for one in found)
        return real(self, found, states)

    def one_token(one):
        return max(tokens_of(one.prompt.removeprefix("<s>") + one.response))

    assert kept[name_of(tokens_of(TEXTS[0]))].max().item() == max(tokens_of(TEXTS[0]))
    RunFeedback._aligned = watched
    try:
        actor.fit()
    finally:
        RunFeedback._aligned = real
    assert seen == [1.5] * 8  # the stand-in's update makes every state half as large again


def test_openrlhf_s_ranks_make_the_same_number_of_passes(fake):
    events = [[], []]
    world = Threads(2)

    def work(number):
        one = Actor(events[number])
        one.r2m_open = functools.partial(feedback, fake, world.rank(number))
        share = TEXTS[:6] if number == 0 else TEXTS[6:]
        for part in experiences(share):
            one.append(part)
        return one.fit()

    first, second = on_all(2, work)
    assert first["r2m/groups"] == second["r2m/groups"] == 2
    assert [one.count("forward") for one in events] == [3, 3]


@pytest.mark.parametrize("name", ["ring_attn_size", "tensor_parallel_size"])
def test_openrlhf_s_split_sequences_are_refused(fake, name):
    (actor,) = actors(fake, [])
    setattr(actor.strategy.args.ds, name, 2)
    (one,) = experiences(TEXTS[:2])
    with pytest.raises(ValueError, match=r"--ds\.ring_attn_size 1"):
        actor.forward(one.sequences, one.action_mask, one.attention_mask)


def test_openrlhf_s_rollouts_of_an_older_policy_are_refused(fake):
    (actor,) = actors(fake, [])
    actor.strategy.args.train.async_enable = True
    (one,) = experiences(TEXTS[:2])
    with pytest.raises(ValueError, match=r"--train\.async_enable"):
        actor.forward(one.sequences, one.action_mask, one.attention_mask)


def test_the_run_is_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("R2M_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("R2M_RUN", raising=False)
    monkeypatch.delenv("R2M_FEEDBACK_RUN", raising=False)
    with pytest.raises(ValueError, match="R2M_FEEDBACK_RUN"):
        openrlhf.feedback_here()
    # Where R2M_RUN is for those that score texts alone, the other name is this one's.
    for name, run in (("R2M_RUN", "texts"), ("R2M_FEEDBACK_RUN", "mine")):
        monkeypatch.setenv(name, run)
        opened = openrlhf.feedback_here()
        assert (opened._run, opened._client.url) == (run, "http://127.0.0.1:1")
        opened._client.close()


class Remote:
    """What ray.remote makes of a class."""

    def __init__(self, plain, **settings):
        self.__ray_metadata__ = SimpleNamespace(modified_class=plain)
        self.settings = settings


def test_openrlhf_s_classes_are_put_under_ray_again(monkeypatch):
    class PPOTrainer:
        def __init__(self, strategy, tokenizer=None):
            self.strategy, self.tokenizer, self.kl_ctl = strategy, tokenizer, "kl"
            self.actor_model_group, self.critic_model_group = "actor", "critic"
            self.reward_model_group, self.reference_model_group = "reward", "reference"
            self.experience_maker = "theirs"

    class GivenAll:
        def __init__(self, *given):
            self.given = given

    def remote(*plain, **settings):
        return Remote(*plain) if plain else lambda one: Remote(one, **settings)

    for name, module in {
        "ray": SimpleNamespace(remote=remote),
        "openrlhf.trainer.ray.ppo_actor": SimpleNamespace(
            PolicyModelActor=Remote(PolicyModelActor)
        ),
        "openrlhf.trainer.ppo_trainer": SimpleNamespace(
            PPOTrainer=Remote(PPOTrainer), RemoteExperienceMaker=GivenAll
        ),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    actor = openrlhf.policy_actor(Recorder)
    assert actor.settings == {"num_gpus": 1}
    made = actor.__ray_metadata__.modified_class([])
    assert isinstance(made, openrlhf.FeedbackActor)
    assert isinstance(made, PolicyModelActor)
    assert made.r2m_record is Recorder
    trainer = openrlhf.ppo_trainer().__ray_metadata__.modified_class("strategy", tokenizer="t")
    assert isinstance(trainer, PPOTrainer)
    maker = trainer.experience_maker
    assert isinstance(maker, openrlhf.FeedbackExperienceMaker)
    # In the order of its parent's arguments.
    assert maker.given == ("actor", "critic", "reward", "reference", "kl", "strategy", "t")
