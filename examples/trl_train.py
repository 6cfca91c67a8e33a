"""Train a policy with TRL on the rewards of an R2M server.

r2m serve --model REWARD_MODEL
python examples/trl_train.py --trainer grpo --model Qwen/Qwen2.5-0.5B-Instruct --run first

accelerate launch --num_processes 2 examples/trl_train.py ...   # several processes
python examples/trl_train.py ... --resume                       # from the last checkpoint
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from r2m_client.integrations.trl import R2M, TrainingStopped

PROMPTS = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Write two lines about the sea.",
    "What is a prime number?",
)


def main(arguments: list[str] | None = None) -> int:
    """Train; the exit status is 1 where there were no rewards to train on."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("r2m_client.integrations.trl").setLevel(logging.INFO)
    common: dict[str, Any] = {
        "output_dir": str(given.out),
        "max_steps": given.steps,
        "per_device_train_batch_size": given.batch,
        "num_generations": given.generations,
        "max_completion_length": given.tokens,
        "learning_rate": given.learning_rate,
        "save_steps": given.save_every,
        "logging_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "report_to": [],
    }
    with R2M(given.server, run=given.run, patience=given.patience) as r2m:
        shared: dict[str, Any] = {
            "model": given.model,
            "reward_funcs": [r2m],
            "callbacks": [r2m],
            "train_dataset": _prompts(given.data),
        }
        trainer: Any
        if given.trainer == "grpo":
            trainer = GRPOTrainer(args=GRPOConfig(**common), **shared)
        else:
            trainer = RLOOTrainer(args=RLOOConfig(**common), **shared)
        try:
            trainer.train(resume_from_checkpoint=given.resume)
        except TrainingStopped as stopped:
            print(f"stopped at step {trainer.state.global_step}: {stopped}", file=sys.stderr)
            return 1
    return 0


def _prompts(data: Path | None) -> Any:
    """A column `prompt`: conversations, or strings."""
    if data is None:
        rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS * 16]
        return Dataset.from_list(rows)
    return load_dataset("json", data_files=str(data), split="train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a policy with TRL on the rewards of an R2M server.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--trainer", choices=["grpo", "rloo"], default="grpo")
    parser.add_argument("--model", required=True, help="the policy: a folder or hub id")
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    parser.add_argument("--run", default="trl", help="the run's name; created if it is not there")
    parser.add_argument("--data", type=Path, default=None, help="JSONL with a column `prompt`")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="completions a process and pass")
    parser.add_argument("--generations", type=int, default=4, help="completions a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of a completion at most")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--save-every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds to wait for a server"
    )
    parser.add_argument("--out", type=Path, default=Path("out/trl"), help="checkpoints go here")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    return parser


if __name__ == "__main__":
    sys.exit(main())
