"""What happens around the steps: evaluations, checkpoints, texts without a reward, old policies."""

import json
import logging

import pytest
import torch
from datasets import Dataset
from trl_training import METHOD, WIDTH, Watched, by_hand, logged, make_trainer, rows

from r2m_client import Client, Sample
from r2m_client.integrations.trl import R2M, TrainingStopped

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and what it imports, on their own future


def same(r2m, rewards):
    for one, expected in zip(r2m.scored, rewards, strict=True):
        spread = max(expected) - min(expected)
        assert one.rewards == pytest.approx(expected, abs=2e-4 * spread)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_evaluations_are_scored_and_never_aligned(server, client, policy, run, kind, tmp_path):
    more = {"eval_dataset": Dataset.from_list(rows(3))}
    with Watched(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer(
            kind, policy, r2m, tmp_path, parts=more, eval_strategy="steps", eval_steps=1,
            eval_on_start=True, per_device_eval_batch_size=6, num_generations_eval=2,
        )  # fmt: skip
        trainer.train()
        after = trainer.evaluate()
    assert [one.training for one in r2m.scored] == [False, True, False, True, False, False]
    assert client.run(run).step == 2
    rewards, _ = by_hand(client, f"{run}-hand", r2m, trainer)
    same(r2m, rewards)
    assert logged(trainer, "eval_r2m/head") == [0, 1, 2, 2]
    assert after["eval_r2m/reward"] == pytest.approx(sum(rewards[-1]) / 6, abs=1e-5)


def test_an_evaluation_alone_goes_by_the_live_head(server, client, policy, run, tmp_path):
    with Watched(server.urls["http"], run, method=METHOD) as r2m:
        make_trainer("grpo", policy, r2m, tmp_path).train()
        trainer = make_trainer(
            "grpo", policy, r2m, tmp_path, parts={"eval_dataset": Dataset.from_list(rows(2))},
            per_device_eval_batch_size=8,
        )  # fmt: skip
        assert trainer.evaluate()["eval_r2m/head"] == 2
    assert client.run(run).step == 2


def test_a_checkpoint_goes_on_where_it_left_off(server, client, policy, run, tmp_path, caplog):
    """From the last one as if nothing had been; from an older one on a new branch."""
    caplog.set_level(logging.INFO, logger="r2m_client.integrations.trl")
    saving = {"save_strategy": "steps", "save_steps": 1}

    def train(steps, checkpoint=None):
        with Watched(server.urls["http"], run) as r2m:
            trainer = make_trainer("rloo", policy, r2m, tmp_path, max_steps=steps, **saving)
            trainer.train(checkpoint and str(tmp_path / f"checkpoint-{checkpoint}"))
        return logged(trainer, "r2m/step"), r2m

    client.create_run(run, policy_hidden_size=WIDTH, method=METHOD)
    assert train(3)[0] == [1, 2, 3]
    found = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    head = next(h.head for h in reversed(client.heads(run)) if h.accepted and h.step <= 2)
    assert found["stateful_callbacks"][f"r2m/{run}"] == {"branch": "main", "step": 2, "head": head}

    assert train(4, checkpoint=3)[0] == [1, 2, 3, 4]
    assert [(b.branch, b.step) for b in client.run(run).branches] == [("main", 4)]

    steps, _ = train(4, checkpoint=2)
    assert steps == [1, 2, 3, 4]  # the checkpoint's log, and then its own
    info = client.run(run)
    assert (info.branch, info.step) == ("b1", 4)
    assert info.branches[1].origin_step == 2
    assert "resumed from a checkpoint at step 2 of main" in caplog.text

    assert client.run(run).aliases["checkpoint-2"] == head  # kept, with its optimizer state

    # Again: what the first attempt did on its branch is left there.
    assert train(3, checkpoint=2)[0] == [1, 2, 3]
    assert [(b.branch, b.step) for b in client.run(run).branches] == [
        ("main", 4), ("b1", 4), ("b2", 3),
    ]  # fmt: skip


def test_heads_of_deleted_checkpoints_may_go(server, client, policy, run, tmp_path):
    with R2M(server.urls["http"], run, method=METHOD) as r2m:
        make_trainer("rloo", policy, r2m, tmp_path, max_steps=4, save_strategy="steps",
                     save_steps=1, save_total_limit=2).train()  # fmt: skip
    live = {head.step: head.head for head in client.heads(run) if head.accepted}
    aliases = client.run(run).aliases
    found = {n: aliases[f"checkpoint-{n}"] for n in range(1, 5)}
    assert found == {1: 0, 2: 0, 3: live[3], 4: live[4]}


def test_a_checkpoint_of_another_server(server, client, policy, run, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    with R2M(server.urls["http"], run, method=METHOD) as r2m:
        make_trainer("rloo", policy, r2m, tmp_path, **saving).train()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text().replace('"step": 2\n', '"step": 7\n'))
    with R2M(server.urls["http"], run) as r2m:
        trainer = make_trainer("rloo", policy, r2m, tmp_path, max_steps=4)
        with pytest.raises(TrainingStopped, match=r"at step 7 of branch .* it is another"):
            trainer.train(str(tmp_path / "checkpoint-2"))
    assert [(b.branch, b.step) for b in client.run(run).branches] == [("main", 2)]


def test_a_new_training_on_an_old_run(server, client, policy, run, tmp_path):
    for settings in ({"method": METHOD}, {"continue_run": True}):
        with R2M(server.urls["http"], run, **settings) as r2m:
            make_trainer("grpo", policy, r2m, tmp_path).train()
    assert client.run(run).step == 4
    with (
        R2M(server.urls["http"], run) as r2m,
        pytest.raises(TrainingStopped, match="is at step 4 already, and this training begins anew"),
    ):
        make_trainer("grpo", policy, r2m, tmp_path).train()


def test_a_batch_that_training_does_not_finish(server, client, policy, run, tmp_path, caplog):
    with R2M(server.urls["http"], run, method=METHOD) as r2m:
        make_trainer("grpo", policy, r2m, tmp_path, num_iterations=2, max_steps=3).train()
    assert client.run(run).step == 1
    assert "ended within 1 generation batch(es): they are not aligned" in caplog.text


@pytest.mark.parametrize(("share", "out"), [(0.5, [0, 1]), (0.9, [1, 1])])
def test_rollouts_without_a_reward(server, policy, run, share, out, tmp_path, caplog):
    """Texts too long for the reward model: None to TRL; groups that lost too many stay out."""
    texts = ("a " * 73, "Hi", "a " * 78, "Ho")
    dataset = [{"prompt": [{"role": "user", "content": one}]} for one in texts]
    with Watched(server.urls["http"], run, method=METHOD, group_share=share) as r2m:
        trainer = make_trainer(
            "grpo", policy, r2m, tmp_path, dataset=dataset, shuffle_dataset=False, max_steps=2,
            max_completion_length=16,
        )  # fmt: skip
        trainer.train()
    lost = [[reward is None for reward in one.rewards] for one in r2m.scored]
    assert [sum(one[:4]) for one in lost] == [1, 3]
    assert not any(any(one[4:]) for one in lost)
    assert logged(trainer, "r2m/samples/skipped") == [sum(one) for one in lost]
    assert logged(trainer, "r2m/groups/skipped") == out
    assert logged(trainer, "r2m/groups/used") == [2 - one for one in out]
    assert "1 of 8 rollouts have no reward (text_too_long 1); the first, 0-" in caplog.text
    good = [reward for reward in r2m.scored[0].rewards if reward is not None]
    assert logged(trainer, "rewards/r2m/mean")[0] == pytest.approx(sum(good) / len(good), rel=1e-4)


def test_no_reward_at_all(server, client, policy, run, tmp_path):
    """An empty step: the policy stays, the head stays, the clock goes on."""
    dataset = rows(4)
    for row in dataset:
        row["prompt"][0]["content"] = "word " * 60
    with Watched(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer("rloo", policy, r2m, tmp_path, dataset=dataset, max_steps=1)
        trainer.train()
    assert r2m.scored[0].rewards == [None] * 8
    assert logged(trainer, "r2m/verdict/skipped") == [1]
    assert logged(trainer, "r2m/groups/skipped") == [2]
    assert "r2m/reward" not in trainer.state.log_history[0]
    first, last = r2m.scored[0].weights, r2m.aligned[0].weights
    assert all((first[name] == last[name]).all() for name in first)
    info = client.run(run)
    assert (info.step, info.head) == (1, 0)


def test_an_old_policy_is_answered_by_the_head_of_its_step(server, client, policy, run, tmp_path):
    dataset = rows(policy_version=0)
    with Watched(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer("grpo", policy, r2m, tmp_path, dataset=dataset, max_steps=3)
        trainer.train()
    assert logged(trainer, "r2m/head") == [0, 0, 0]
    assert logged(trainer, "r2m/live_head")[-1] > 0
    rewards, answers = by_hand(client, f"{run}-hand", r2m, trainer)
    same(r2m, rewards)
    expected = [answer.loss.bt for answer in answers]
    assert logged(trainer, "r2m/bt") == pytest.approx(expected, rel=1e-3)


def test_a_group_has_one_version(server, policy, run, client, tmp_path):
    """The rewards of a group are compared: its oldest policy names the head."""
    dataset = rows(8)
    for number, row in enumerate(dataset):
        row["policy_version"] = 0 if number % 2 else 1
    with Watched(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer("grpo", policy, r2m, tmp_path, dataset=dataset, max_steps=1)
        batch, _, versions = None, None, None
        r2m.attach(trainer)
        trainer.model.train()
        r2m._open(trainer.model, None, training=True)
        prompts = [dataset[0]["prompt"]] * 8
        completions = [[{"role": "assistant", "content": "Hi"}]] * 8
        batch, _, versions = r2m._rollouts(
            prompts, completions, [[5, 6]] * 8, {"policy_version": [2, 1, 2, 2, 3, 3, 3, 3]}
        )
    assert versions == [1, 1, 1, 1, 3, 3, 3, 3]
    assert [one.group for one in batch.samples] == ["0-0"] * 4 + ["0-1"] * 4


@pytest.mark.parametrize("feedback", ["backbone", "none"])
def test_runs_that_do_not_ask_for_the_policys_states(
    server, client, policy, run, feedback, tmp_path
):
    client.create_run(run, feedback=feedback, method=METHOD)
    with Watched(server.urls["http"], run) as r2m:
        trainer = make_trainer("rloo", policy, r2m, tmp_path)
        trainer.train()
    assert logged(trainer, "r2m/step") == [1, 2]
    assert r2m.forwards == 0


def test_strings_go_as_they_are_or_as_chat(server, client, policy, run, tmp_path):
    found = {}
    for text in ("raw", "chat"):
        with Watched(server.urls["http"], f"{run}-{text}", method=METHOD, text=text) as r2m:
            make_trainer(
                "grpo", policy, r2m, tmp_path, dataset=rows(chat=False), max_steps=1
            ).train()
        found[text] = r2m.scored[0]
    for text, one in found.items():
        sent = [
            Sample(f"{n}", prompt, completion, format=text)
            for n, (prompt, completion) in enumerate(zip(one.prompts, one.completions, strict=True))
        ]
        expected = [0.6 * score.vanilla_reward for score in client.score(sent).scores]
        assert one.rewards == pytest.approx(expected, abs=1e-5)  # version 0: W_o = 0


def test_a_rollout_function_says_its_prompt_tokens(server, client, policy, run, tmp_path):
    def rollouts(prompts, trainer):
        ids = trainer._tokenize_prompts(prompts)[0]
        ids = [[*one[:-2], 9, *one[-2:]] for one in ids]  # not what the template gives
        return {
            "prompt_ids": ids,
            "prompt_token_ids": ids,
            "completion_ids": [[5, 6 + n % 3] for n in range(len(prompts))],
            "logprobs": [[0.0, 0.0]] * len(prompts),
        }

    def silent(prompts, trainer):
        return {key: value for key, value in rollouts(prompts, trainer).items()
                if key != "prompt_token_ids"}  # fmt: skip

    with R2M(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer("grpo", policy, r2m, tmp_path, parts={"rollout_func": rollouts})
        trainer.train()
        assert logged(trainer, "r2m/step") == [1, 2]
    with R2M(server.urls["http"], f"{run}-silent", method=METHOD) as r2m:
        trainer = make_trainer("grpo", policy, r2m, tmp_path, parts={"rollout_func": silent})
        with pytest.raises(ValueError, match="return them as `prompt_token_ids`"):
            trainer.train()


def test_tokens_that_are_not_the_texts(server, policy, run, tmp_path):
    with R2M(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer("rloo", policy, r2m, tmp_path)
        with torch.no_grad():
            trainer.model(input_ids=torch.tensor([[5, 6, 7]] * 4), use_cache=False)
        with pytest.raises(RuntimeError, match="rollout 0 has 2 completion tokens, and the policy"):
            r2m._policy.rollouts(trainer, ["x"] * 4, [[6, 8]] * 4, {})


def test_a_policy_of_another_width(server, client, policy, run, tmp_path):
    client.create_run(run, policy_hidden_size=WIDTH + 8, method=METHOD)
    with (
        R2M(server.urls["http"], run) as r2m,
        pytest.raises(TrainingStopped, match="of width 56, this one's hidden states have 48"),
    ):
        make_trainer("grpo", policy, r2m, tmp_path).train()


def test_a_run_of_another_convention(server, client, policy, run, tmp_path):
    client.create_run(run, policy_hidden_size=WIDTH, hidden_state="pre_norm", method=METHOD)
    with (
        R2M(server.urls["http"], run) as r2m,
        pytest.raises(TrainingStopped, match="expects pre_norm states"),
    ):
        make_trainer("grpo", policy, r2m, tmp_path).train()


def test_a_setting_that_the_server_refuses(server, policy, run, tmp_path):
    with (
        R2M(server.urls["http"], run, method={"widht": 16}) as r2m,
        pytest.raises(TrainingStopped, match="widht"),
    ):
        make_trainer("grpo", policy, r2m, tmp_path).train()


def test_settings_that_are_none(server, run):
    with pytest.raises(ValueError, match="neither split nor streamed"):
        R2M(server.urls["http"], run, feedback="carrier pigeon")
    with pytest.raises(ValueError, match="between 0 and 1"):
        R2M(server.urls["http"], run, group_share=2)


def test_the_callback_must_be_there_too(server, policy, run, tmp_path):
    with R2M(server.urls["http"], run, method=METHOD) as r2m:
        trainer = make_trainer("grpo", policy, r2m, tmp_path)
        trainer.remove_callback(r2m)
        with pytest.raises(TypeError, match=r"callbacks=\[r2m\], or its head never follows"):
            trainer.train()
        with pytest.raises(TypeError, match="not in NoneType"):
            r2m([], [], [])


def test_a_client_of_ones_own(server, policy, run, tmp_path):
    with Client(server.urls["grpc"]) as own, R2M(own, run, method=METHOD) as r2m:
        make_trainer("grpo", policy, r2m, tmp_path, max_steps=1).train()
        assert own.run(run).step == 1
