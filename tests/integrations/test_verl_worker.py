"""verl's subclasses on stand-ins for its classes; test_verl_real.py has the real ones."""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from support import verl_stands
from support.verl_stands import MAGIC_ATTR, Batch, Role
from test_trainer_feedback import TEXTS, feedback
from test_trainer_feedback import fake as fake
from trainer_stands import Policy, Recorder, Tokenizer, padded, tokens_of


class Actor(verl_stands.TrainingWorker):
    """verl's TrainingWorker: a policy, its passes, and its update."""

    def __init__(self):
        self.events = []
        self.engine = SimpleNamespace(module=Policy())
        self.model_config = SimpleNamespace(tokenizer=Tokenizer())

    def infer_batch(self, data):
        self.events.append("pass" if data["compute_loss"] is False else "with a loss")
        self.engine.module(*padded([row.tolist() for row in data["input_ids"].unbind()]))
        return Batch(log_probs="theirs")

    def train_mini_batch(self, data):
        self.events.append("update")
        data.pop("mini_batch_size")
        self.engine.module.weight += 0.5
        return Batch(metrics={"lr": [1.0]})


def jagged(rows):
    each = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nested.as_nested_tensor(each, layout=torch.jagged)


def rollouts(texts=TEXTS, **more):
    prompts, responses = [tokens_of(text[:4]) for text in texts], [text[4:] for text in texts]
    letters = [[ord(letter) for letter in response] for response in responses]
    return Batch(
        prompts=jagged(prompts),
        responses=jagged(letters),
        input_ids=jagged([one + other for one, other in zip(prompts, letters, strict=True)]),
        uid=[f"{n}-uid" for n in range(len(texts))],
        compute_loss=False,
        mini_batch_size=8,
        **more,
    )


@pytest.fixture
def adapter(monkeypatch):
    return verl_stands.adapter(monkeypatch)


@pytest.fixture
def worker(adapter, fake):
    made = adapter.FeedbackWorker(Actor())
    made.r2m_record = Recorder
    made.r2m_open = functools.partial(feedback, fake)
    return made


def ends(scores):
    """Each row's last number, where the others are 0."""
    rows = [row.tolist() for row in scores.unbind()]
    assert not any(any(row[:-1]) for row in rows)
    return [row[-1] for row in rows]


def test_the_methods_are_dealt_out_as_verl_s(adapter):
    for name in ("compute_log_prob", "update_actor"):
        ours, theirs = getattr(adapter.FeedbackWorker, name), getattr(verl_stands.Worker, name)
        assert ours is not theirs
        assert getattr(ours, MAGIC_ATTR) == getattr(theirs, MAGIC_ATTR)


def test_the_pass_brings_rewards_and_the_update_aligns(fake, worker):
    output = worker.compute_log_prob(rollouts())
    assert output["log_probs"] == "theirs"
    assert ends(output["rm_scores"]) == [1, 3, 2, 4] * 2
    assert [len(row) for row in output["rm_scores"].unbind()] == [1, 3, 2, 4] * 2
    (score,) = [call for call in fake.calls if call.method == "score"][:1]
    assert {one["prompt"] for one in score.request["samples"]} == {"<s>one?", "<s>two?"}
    metrics = worker.update_actor(rollouts())["metrics"]
    assert worker.actor.events == ["pass", "update", "pass"]
    assert (metrics["lr"], metrics["r2m/head"], metrics["r2m/groups"]) == ([1.0], 1, 2)
    assert fake.calls[-1].method == "align"


def test_samples_that_fill_a_batch_up_are_no_rollouts(fake, worker):
    data = rollouts(["one?a", "one?bcd", "two?ef"])
    data["uid"][1] = "padd9c0"
    assert ends(worker.compute_log_prob(data)["rm_scores"]) == [1, 0, 2]
    worker.update_actor(data)
    sent = next(call.request for call in fake.calls if call.method == "align")
    assert sorted(len(group["samples"]) for group in sent["groups"]) == [1, 1]


def test_one_uid_for_all_may_come_as_one(worker):
    data = rollouts(TEXTS[:2])
    data["uid"] = "a-uid"  # as a TensorDict gives what is the same in each row
    assert ends(worker.compute_log_prob(data)["rm_scores"]) == [1, 3]


def test_the_reference_s_pass_is_none_of_ours(fake, worker):
    output = worker.compute_log_prob(rollouts(no_lora_adapter=True))
    assert "rm_scores" not in output
    assert fake.calls[1:] == []


def test_states_of_a_step_without_an_update_are_let_go_of(worker):
    for texts in (TEXTS[:2], TEXTS[2:4]):
        worker.compute_log_prob(rollouts(texts))
    assert len(worker._r2m._states) == 2


def test_a_reward_has_a_place(adapter):
    with pytest.raises(ValueError, match="rollout 1 has no token"):
        adapter.token_rewards([1.0, 2.0], jagged([[1], []]))


class Config(dict):
    """A DictConfig, as far as `get` goes."""


def config(**changed):
    fsdp = Config(ulysses_sequence_parallel_size=changed.get("engine_ulysses", 1))
    return Config(
        trainer=Config(
            use_v1=changed.get("v1", True), v1=Config(trainer_mode=changed.get("mode", "sync"))
        ),
        algorithm=Config(rollout_correction=Config(bypass_mode=changed.get("bypass", False))),
        actor_rollout_ref=Config(
            actor=Config(
                strategy=changed.get("strategy", "fsdp2"),
                ulysses_sequence_parallel_size=changed.get("ulysses", 1),
                fsdp_config=fsdp,
            )
        ),
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"v1": False}, "set trainer.use_v1=True, it is False"),
        ({"mode": "separate_async"}, "set trainer.v1.trainer_mode=sync, it is separate_async"),
        ({"bypass": True}, "bypass_mode=False"),
        ({"strategy": "megatron"}, "actor.strategy=fsdp, it is megatron"),
        ({"ulysses": 2}, "actor.ulysses_sequence_parallel_size=1, it is 2"),
        ({"engine_ulysses": 4}, "fsdp_config.ulysses_sequence_parallel_size=1, it is 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_starts(adapter, changed, named):
    with pytest.raises(ValueError, match=named):
        adapter.FeedbackTrainer(config(**changed))


def test_the_trainer_s_worker_is_ours(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=lambda one: ("remote", one)))
    workers = adapter.FeedbackTrainer(config()).role_worker_mapping
    assert workers == {
        Role.ActorRolloutRef: ("remote", adapter.FeedbackWorker),
        Role.Critic: "theirs",
    }
    config_without = config()
    del config_without["algorithm"]["rollout_correction"]
    assert adapter.FeedbackTrainer(config_without)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"verl": None}, "there is none"),
        (
            {"verl": {"__version__": "0.7.0"}, "verl_trainer_ppo_v1_trainer_sync": None},
            r"verl\.trainer\.ppo\.v1\.trainer_sync \(.*\) not found in verl 0\.7\.0",
        ),
        (
            {
                "verl_workers_engine_workers": {
                    "ActorRolloutRefWorker": SimpleNamespace(update_actor=1),
                    "TrainingWorker": verl_stands.TrainingWorker,
                }
            },
            r"ActorRolloutRefWorker\.compute_log_prob not found in verl 0\.9\.1",
        ),
        ({"verl": {"__version__": "0.10.0"}}, "this is verl 0.10.0"),
    ],
)
def test_another_verl_is_refused_at_import_with_what_to_install(monkeypatch, changed, said):
    with pytest.raises(ImportError, match=said) as caught:
        verl_stands.adapter(monkeypatch, **changed)
    assert str(caught.value).startswith("r2m_client.integrations.verl_worker fits verl 0.9.x")
    assert str(caught.value).endswith("pip install 'verl[verl-core]>=0.9,<0.10'")
