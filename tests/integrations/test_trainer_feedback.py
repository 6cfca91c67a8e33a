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
from r2m_client.integrations import openrlhf, verl_worker
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


def states_of(ids, weight=1.0):
    return [torch.full((len(one), WIDTH), weight) for one in ids]


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


def test_states_must_be_those_of_what_went_through(fake):
    ids, _ = rollouts(TEXTS[:2])
    mine = feedback(fake)
    with pytest.raises(ValueError, match="2 sequences went through, states of 1 came"):
        mine.keep(ids, states_of(ids[:1]))
    with pytest.raises(ValueError, match="6 tokens and 5 hidden states"):
        mine.keep(ids, [states_of(ids)[0][1:], states_of(ids)[1]])
    assert fake.calls[1:] == []


def test_rewards_come_in_order_and_twins_get_the_same(fake):
    ids, found = rollouts()
    mine = feedback(fake)
    mine.keep(ids, states_of(ids))
    assert mine.score([*found, found[0]]) == [1, 3, 2, 4, 1, 3, 2, 4, 1]
    with pytest.raises(KeyError):
        mine.score(rollouts(["one?unseen"])[1])


def test_one_sample_without_a_reward_leaves_the_step_without_any(fake):
    ids, found = rollouts(TEXTS[:2])
    mine = feedback(fake)
    mine.keep(ids, [torch.full((len(one), WIDTH + 1), 1.0) for one in ids])
    with pytest.raises((SamplesFailed, ValueError)):
        mine.score(found)


def test_steps_are_the_servers_and_go_on_after_a_restart(fake):
    for first in (1, 3):
        mine = feedback(fake)
        for step in (first, first + 1):
            ids, found = rollouts()
            mine.keep(ids, states_of(ids, step))
            assert mine.align(found)["r2m/head"] == step
            with pytest.raises(KeyError):  # states are let go of
                mine.align(found)
    with fake.client() as client:
        assert client.run("run").next_step == 5


def test_ranks_align_together_once(fake):
    world = Threads(2)

    def work(number):
        ids, found = rollouts(TEXTS[number::2])
        mine = feedback(fake, world.rank(number))
        mine.keep(ids, states_of(ids))
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


def test_a_refused_align_is_known_on_every_rank(fake):
    world = Threads(2)
    fake.fail_next("head_damaged", method="align")

    def work(number):
        ids, found = rollouts(TEXTS[number::2])
        mine = feedback(fake, world.rank(number))
        mine.keep(ids, states_of(ids))
        return mine.align(found)

    first, second = on_all(2, work)
    assert "head_damaged" in str(first)
    assert isinstance(second, RuntimeError)
    assert "rank 0" in str(second)


def test_an_unknown_run_is_known_too(fake):
    mine = RunFeedback(fake.client(retries=0), "nobody", Alone())
    ids, found = rollouts()
    mine.keep(ids, states_of(ids))
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


def test_the_run_is_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("R2M_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("R2M_RUN", raising=False)
    with pytest.raises(ValueError, match="R2M_RUN"):
        openrlhf.feedback_here()
    monkeypatch.setenv("R2M_RUN", "mine")
    opened = openrlhf.feedback_here()
    assert (opened._run, opened._client.url) == ("mine", "http://127.0.0.1:1")
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


# verl


class Config(dict):
    """A DictConfig, as far as `get` goes."""


CONFIG = Config(rollout=Config(log_prob_use_dynamic_bsz=False), model=Config(), actor=Config())


class Worker:
    """verl's FSDP worker: the methods' arguments, and what is noted on them."""

    def __init__(self, events=None):
        self.events = [] if events is None else events
        self.actor_module_fsdp = PolicyModelActor([]).actor.model
        self.tokenizer = Tokenizer()
        self.config = CONFIG

    def compute_log_prob(self, data):
        self.events.append("log_prob")
        batch = data.batch
        self.actor_module_fsdp(batch["input_ids"], batch["attention_mask"])
        return SimpleNamespace(batch={"old_log_probs": torch.zeros(batch["responses"].shape)})

    def update_actor(self, data):
        self.events.append("update")
        self.actor_module_fsdp.weight += 0.5
        return SimpleNamespace(meta_info={"metrics": {"actor/lr": 1.0}})


NOTED = {"dispatch_mode": "nd"}
Worker.compute_log_prob.attrs_123456 = NOTED
Worker.update_actor.attrs_123456 = NOTED


def proto(texts=TEXTS):
    """verl's batch: prompts padded on the left, responses on the right."""
    prompts, before = padded([tokens_of(text[:4]) for text in texts], "left")
    responses, after = padded([[ord(one) for one in text[4:]] for text in texts], "right")
    batch = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], 1),
        "attention_mask": torch.cat([before, after], 1),
        "response_mask": after,
    }
    return SimpleNamespace(batch=batch, meta_info={})


@pytest.fixture
def worker(fake):
    made = verl_worker.feedback_worker(Worker, Recorder)()
    made.r2m_open = functools.partial(feedback, fake)
    return made


def test_verl_s_worker_keeps_what_is_noted_on_its_methods():
    made = verl_worker.feedback_worker(Worker, Recorder)
    assert made.__name__ == "FeedbackWorker"
    for name in ("compute_log_prob", "update_actor"):
        assert getattr(made, name).attrs_123456 is NOTED
        assert getattr(made, name) is not getattr(Worker, name)


def test_verl_s_pass_brings_rewards_and_its_update_aligns(fake, worker):
    output = worker.compute_log_prob(proto())
    assert output.batch[verl_worker.REWARDS].tolist() == [1, 3, 2, 4] * 2
    assert worker.events == ["log_prob"]
    (score,) = [call for call in fake.calls if call.method == "score"][:1]
    assert {one["prompt"] for one in score.request["samples"]} == {"<s>one?", "<s>two?"}
    metrics = worker.update_actor(proto()).meta_info["metrics"]
    assert worker.events == ["log_prob", "update", "log_prob"]
    assert (metrics["actor/lr"], metrics["r2m/head"], metrics["r2m/groups"]) == (1.0, 1, 2)
    assert fake.calls[-1].method == "align"


def test_verl_s_reference_pass_is_none_of_ours(fake, worker):
    data = proto()
    data.meta_info["is_lora"] = True
    output = worker.compute_log_prob(data)
    assert verl_worker.REWARDS not in output.batch
    assert fake.calls[1:] == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (Config(rollout=Config(log_prob_use_dynamic_bsz=True)), "log_prob_use_dynamic_bsz=False"),
        (Config(model=Config(use_remove_padding=True)), "model.use_remove_padding=False"),
        (Config(actor=Config(ulysses_sequence_parallel_size=2)), "parallel_size=1"),
    ],
)
def test_verl_s_settings_that_mix_samples_are_refused(worker, config, named):
    worker.config = config
    with pytest.raises(ValueError, match=named):
        worker.compute_log_prob(proto())


class RayPPOTrainer:
    """verl's, with the order of its `fit`: rewards, log probabilities, update."""

    bypass = False

    def __init__(self, worker):
        self.worker = worker

    def _compute_or_extract_reward(
        self, batch, reward_fn=None, reward_for_val=False, sum_reward=False
    ):
        rewards = torch.zeros(batch.batch["responses"].shape)
        rewards[:, 0] = -1.0
        return rewards.sum(-1) if sum_reward else (rewards, {})

    def _compute_old_log_prob(self, batch):
        return self.worker.compute_log_prob(batch), 0

    def _update_actor(self, batch):
        return self.worker.update_actor(batch)

    def fit(self, batch):
        self._compute_or_extract_reward(batch, reward_for_val=True)
        self._compute_or_extract_reward(batch, sum_reward=True)
        rewards, _ = self._compute_or_extract_reward(batch, reward_for_val=False)
        log_probs = None if self.bypass else self._compute_old_log_prob(batch)
        self._update_actor(batch)
        return rewards, log_probs


class Trainer(verl_worker.FeedbackTrainer, RayPPOTrainer):
    pass


def test_verl_s_trainer_goes_on_with_the_runs_rewards(worker):
    batch = proto()
    rewards, (log_probs, _) = Trainer(worker).fit(batch)
    assert rewards.sum(-1).tolist() == [1, 3, 2, 4] * 2
    lengths = batch.batch["response_mask"].sum(-1)
    places = [(row != 0).nonzero().item() for row in rewards]
    assert places == [int(one) - 1 for one in lengths]
    assert set(log_probs.batch) == {"old_log_probs"}


def test_verl_s_rewards_that_would_be_others_are_refused(worker):
    trainer = Trainer(worker)
    trainer.bypass = True
    with pytest.raises(ValueError, match="bypass_mode=False"):
        trainer.fit(proto())
    with pytest.raises(ValueError, match="launch_reward_fn_async"):
        Trainer(worker)._compute_old_log_prob(proto())


def test_a_reward_has_a_place():
    with pytest.raises(ValueError, match="a token to stand at"):
        verl_worker.place_rewards(torch.zeros(2, 3), torch.ones(2), [[1, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match="1 rewards for 2 rollouts"):
        verl_worker.place_rewards(torch.zeros(2, 3), torch.ones(1), [[1, 0, 0], [1, 0, 0]])
