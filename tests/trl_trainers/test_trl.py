"""Real TRL trains through a real server; every call is made again by hand, and says the same."""

import pytest
import torch
from trl_training import METHOD, WIDTH, Watched, by_hand, logged, make_trainer

# TRL and what it imports warn about their own future; that is not this project's.
pytestmark = pytest.mark.filterwarnings("ignore")


def lora(dropout):
    from peft import LoraConfig

    return {"peft_config": LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear")}


def absolute():
    """Learned positions: TRL's left padding shifts them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 320}
    torch.manual_seed(3)
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"model": GPT2LMHeadModel(GPT2Config(**sizes, **quiet, eos_token_id=2))}


PARTS = {"lora": lambda: lora(0.0), "lora dropout": lambda: lora(0.3), "absolute": absolute}
CASES = {
    # name: trainer, settings, global steps that align, batches of each, TRL's own pass is used
    "grpo": ("grpo", {}, [1, 2], 1, False),
    "rloo": ("rloo", {}, [1, 2], 1, True),
    "streamed": ("rloo", {"streamed": True}, [1, 2], 1, True),
    "accumulation": ("grpo", {"gradient_accumulation_steps": 2}, [1, 2], 1, False),
    "two steps a batch": ("rloo", {"steps_per_generation": 2, "max_steps": 4}, [2, 4], 1, True),
    "iterations": ("grpo", {"num_iterations": 2, "max_steps": 4}, [2, 4], 1, True),
    "batches within a step": (
        "rloo", {"gradient_accumulation_steps": 2, "steps_per_generation": 1}, [1, 2], 2, True,
    ),
    "batches across steps": (
        "grpo",
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "max_steps": 3,
         "num_generations": 4}, [2, 3], 1, True,
    ),
    "no checkpointing": ("rloo", {"gradient_checkpointing": False}, [1, 2], 1, True),
    "truncated are masked": ("rloo", {"mask_truncated_completions": True}, [1, 2], 1, False),
    "reference model": ("rloo", {"beta": 0.1}, [1, 2], 1, True),
    "lora": ("grpo", {"beta": 0.1}, [1, 2], 1, False),
    "lora dropout": ("rloo", {"beta": 0.0}, [1, 2], 1, False),
    "absolute": ("rloo", {}, [1, 2], 1, False),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_the_plain_calls_say_the_same(server, client, policy, run, case, tmp_path):
    kind, settings, steps, batches, seen = CASES[case]
    settings = dict(settings)
    feedback = "streamed" if settings.pop("streamed", False) else "split"
    parts = PARTS.get(case, dict)()
    with Watched(server.urls["http"], run, method=METHOD, feedback=feedback) as r2m:
        trainer = make_trainer(kind, policy, r2m, tmp_path, parts=parts, **settings)
        trainer.train()
    assert [one.global_step for one in r2m.aligned] == steps
    assert [len(one.batches) for one in r2m.aligned] == [batches] * len(steps)
    rewards, answers = by_hand(client, f"{run}-hand", r2m, trainer)
    for one, expected in zip(r2m.scored, rewards, strict=True):
        spread = max(expected) - min(expected)
        assert one.rewards == pytest.approx(expected, abs=2e-4 * spread)
    assert logged(trainer, "r2m/step") == list(range(1, len(steps) + 1))
    for name in ("bt", "gre", "kl"):
        expected = [getattr(answer.loss, name) for answer in answers]
        assert logged(trainer, f"r2m/{name}") == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert logged(trainer, "r2m/verdict/accepted") == [answer.accepted for answer in answers]
    assert logged(trainer, "r2m/groups/used") == [answer.groups.used for answer in answers]
    assert client.run(run).step == len(steps)
    # One pass more where TRL runs none that could be used.
    assert [one.forwards for one in r2m.scored] == [0 if seen else 1] * len(r2m.scored)
    if case != "truncated are masked":  # all are, here
        first, last = r2m.scored[0].weights, r2m.aligned[-1].weights
        assert any(not (last[name] == first[name]).all() for name in last)
