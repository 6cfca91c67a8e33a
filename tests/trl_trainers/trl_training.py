"""Real TRL trainers on a tiny random policy, and the same calls made by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from support import models
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from r2m_client import Group, Sample
from r2m_client.integrations.trl import R2M

WIDTH = 48
TEMPLATE = models.TEMPLATE + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
METHOD = {"width": 16, "learning_rate": 1e-3}
TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def save_policy(folder, **changes):
    """A causal LM and its tokenizer in a folder."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        models.config("llama", hidden_size=WIDTH, num_attention_heads=4, **changes)
    )
    model.save_pretrained(folder)
    models.tokenizer(template=TEMPLATE).save_pretrained(folder)
    return folder


def rows(count=64, *, chat=True, **columns):
    """Prompts of two lengths."""
    texts = [f"What is {n}? " * (1 + n % 2) for n in range(count)]
    return [
        {"prompt": [{"role": "user", "content": one}] if chat else one, **columns} for one in texts
    ]


def make_trainer(kind, policy, r2m, out, *, dataset=None, callbacks=(), parts=None, **settings):
    """A trainer of a kind ("grpo", "rloo"), not yet started; `parts` are more arguments of it."""
    trainer, config = TRAINERS[kind]
    given = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "beta": 0.0,
        "save_strategy": "no",
        **settings,
    }
    return trainer(
        **{"model": AutoModelForCausalLM.from_pretrained(policy), **(parts or {})},
        processing_class=AutoTokenizer.from_pretrained(policy),
        reward_funcs=[r2m],
        train_dataset=Dataset.from_list(rows() if dataset is None else dataset),
        callbacks=[r2m, *callbacks],
        args=config(
            output_dir=str(out), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, seed=0,
            **given,
        ),
    )  # fmt: skip


@dataclass
class Scored:
    """A reward call: what TRL handed over, what it got, and the policy of that moment."""

    training: bool
    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    rewards: list[float | None]
    weights: dict[str, torch.Tensor]
    forwards: int
    versions: list[int] | None = None


@dataclass
class Aligned:
    """A step end that aligned: which reward calls' rollouts, and the policy of that moment."""

    global_step: int
    batches: list[int]
    weights: dict[str, torch.Tensor]


class Watched(R2M):
    """An R2M that remembers what happened."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.events, self.groups, self.forwards = [], 4, 0

    def __call__(self, prompts, completions, completion_ids, **more):
        trainer = more["log_metric"].__self__
        weights = copy.deepcopy(trainer.model.state_dict())
        training, before = trainer.model.training, self.forwards
        rewards = super().__call__(prompts, completions, completion_ids, **more)
        assert trainer.model.training == training
        self.events.append(
            Scored(training, prompts, completions, completion_ids, rewards, weights,
                   self.forwards - before, more.get("policy_version"))
        )  # fmt: skip
        return rewards

    def on_step_end(self, args, state, control, model=None, **more):
        before = self._pending
        super().on_step_end(args, state, control, model=model, **more)
        done = [batch for batch in before if batch not in self._pending]
        if done:
            calls = [n for n, one in enumerate(self.scored) if one.training]
            first = len(calls) - len(before)
            self.events.append(
                Aligned(state.global_step, calls[first : first + len(done)],
                        copy.deepcopy(model.state_dict()))
            )  # fmt: skip

    def on_init_end(self, args, state, control, model=None, **more):
        super().on_init_end(args, state, control, model=model, **more)
        forward = self._policy.forward

        def counted(trainer, ids):
            self.forwards += 1
            return forward(trainer, ids)

        self._policy.forward = counted

    @property
    def scored(self):
        return [one for one in self.events if isinstance(one, Scored)]

    @property
    def aligned(self):
        return [one for one in self.events if isinstance(one, Aligned)]


@torch.no_grad()
def states(model, weights, ids):
    """The oracle: each text alone, the last of transformers' own hidden states."""
    model.load_state_dict(weights)
    model.eval()
    return [model(torch.tensor([one]), output_hidden_states=True, use_cache=False)
            .hidden_states[-1][0].clone() for one in ids]  # fmt: skip


def samples(tokenizer, model, one, weights):
    """A reward call's rollouts as plain samples with their states."""
    ids = [
        [
            *tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"],
            *completion,
        ]
        for prompt, completion in zip(one.prompts, one.completion_ids, strict=True)
    ]
    return [
        Sample(f"s{n}", messages=[*prompt, *completion], hidden_states=own)
        for n, (prompt, completion, own) in enumerate(
            zip(one.prompts, one.completions, states(model, weights, ids), strict=True)
        )
    ]


def by_hand(client, run, r2m, trainer):
    """The same calls with plain samples on another run: rewards and answers, in order."""
    client.create_run(run, policy_hidden_size=WIDTH, method=METHOD)
    rewards, answers = [], []
    tokenizer, model = trainer.processing_class, trainer.model
    for event in r2m.events:
        step = len(answers) + 1
        if isinstance(event, Scored):
            sent = samples(tokenizer, model, event, event.weights)
            stale = None if event.versions is None else event.versions[0] + 1
            rewards.append(client.score(sent, run=run, step=stale or step).rewards)
            continue
        groups = []
        for number in event.batches:
            sent = samples(tokenizer, model, r2m.scored[number], event.weights)
            sent = [replace(one, id=f"{number}-{one.id}") for one in sent]
            groups += [
                Group(f"g{number}-{start}", sent[start : start + r2m.groups])
                for start in range(0, len(sent), r2m.groups)
            ]
        answers.append(client.align(run, step=step, groups=groups))
    return rewards, answers


def logged(trainer, name):
    """A metric as TRL logged it, in order."""
    return [line[name] for line in trainer.state.log_history if name in line]
