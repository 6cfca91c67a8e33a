"""Real TRL trainers on a tiny random policy, for tests and for what they run as processes."""

from __future__ import annotations

import torch
from support import models

WIDTH = 48
TEMPLATE = models.TEMPLATE + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
METHOD = {"width": 16, "learning_rate": 1e-3}


def save_policy(folder, **changes):
    """A causal LM and its tokenizer in a folder."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        models.config("llama", hidden_size=WIDTH, num_attention_heads=4, **changes)
    )
    model.save_pretrained(folder)
    models.tokenizer(template=TEMPLATE).save_pretrained(folder)
    return folder


def rows(count=64, *, chat=True):
    """Prompts of two lengths."""
    texts = [f"What is {n}? " * (1 + n % 2) for n in range(count)]
    return [{"prompt": [{"role": "user", "content": one}] if chat else one} for one in texts]


def trainer(kind, policy, r2m, out, *, dataset=None, model=None, callbacks=(), more=None, **settings):
    """A trainer of a kind ("grpo", "rloo"), not yet started."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer import grpo_config, grpo_trainer, rloo_config, rloo_trainer

    classes = {
        "grpo": (grpo_trainer.GRPOTrainer, grpo_config.GRPOConfig),
        "rloo": (rloo_trainer.RLOOTrainer, rloo_config.RLOOConfig),
    }
    make, config = classes[kind]
    given = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "beta": 0.0,
        **settings,
    }
    return make(
        model=model or AutoModelForCausalLM.from_pretrained(policy),
        processing_class=AutoTokenizer.from_pretrained(policy),
        reward_funcs=[r2m],
        train_dataset=Dataset.from_list(rows() if dataset is None else dataset),
        callbacks=[r2m, *callbacks],
        args=config(
            output_dir=str(out), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            disable_tqdm=True, seed=0, **given,
        ) if "save_strategy" not in given else config(
            output_dir=str(out), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, seed=0,
            **given,
        ),
        **(more or {}),
    )  # fmt: skip
