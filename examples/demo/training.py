"""TRL's RLOOTrainer with R2M rewards: r2m_client.integrations.trl does it, this shows its steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from r2m_client.integrations.trl import R2M

GROUP_SIZE = 4
PROMPTS_PER_STEP = 4
NEW_TOKENS = 32
VERDICTS = ("accepted", "rejected", "undecided", "skipped", "frozen")


@dataclass
class StepRow:
    """What one step of the demo shows. Rewards are means over the step's rollouts."""

    step: int
    reward: float
    vanilla_reward: float
    omega: float
    head: int
    verdict: str
    accepted: bool
    bt: float | None
    gre: float | None
    kl: float | None
    spread_ratio: float | None
    rank_correlation: float | None
    bytes_sent: int
    seconds: float


class Shown(TrainerCallback):
    """Shows each step from what R2M put into TRL's own metrics.

    Args:
        show: hears of every finished step.
        doing: hears what the step is at.
    """

    def __init__(self, show: Callable[[StepRow], None], doing: Callable[[str], None]) -> None:
        self._show, self._doing = show, doing
        self._started = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._doing(f"step {state.global_step + 1}: generating")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if logs is None or "r2m/step" not in logs:
            return
        now = time.monotonic()
        found = {name.removeprefix("r2m/"): value for name, value in logs.items()}
        verdict = next(one for one in VERDICTS if found[f"verdict/{one}"])
        self._show(
            StepRow(
                step=int(found["step"]),
                reward=found.get("reward", float("nan")),
                vanilla_reward=found.get("vanilla_reward", float("nan")),
                omega=found["omega"],
                head=int(found["live_head"]),
                verdict=verdict,
                accepted=verdict == "accepted",
                bt=found.get("bt"),
                gre=found.get("gre"),
                kl=found.get("kl"),
                spread_ratio=found.get("spread_ratio"),
                rank_correlation=found.get("rank_correlation"),
                bytes_sent=int(found["bytes_sent"]),
                seconds=now - self._started,
            )
        )
        self._started = now


class Said(logging.Handler):
    """What the adapter says it is doing, for the status line."""

    def __init__(self, doing: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._doing = doing

    def emit(self, record: logging.LogRecord) -> None:
        self._doing(record.getMessage())


def train(
    policy: Any,
    tokenizer: Any,
    r2m: R2M,
    prompts: list[str],
    *,
    steps: int,
    out: Path,
    show: Callable[[StepRow], None],
    doing: Callable[[str], None],
) -> None:
    """Train the policy for some steps with RLOO on a CPU or whatever TRL finds."""
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    trainer = RLOOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=[r2m],
        train_dataset=Dataset.from_list(rows),
        callbacks=[r2m, Shown(show, doing)],
        args=RLOOConfig(
            output_dir=str(out / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=PROMPTS_PER_STEP * GROUP_SIZE,
            num_generations=GROUP_SIZE,
            max_completion_length=NEW_TOKENS,
            learning_rate=1e-5,
            beta=0.0,
            seed=0,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)  # the table says it better
    adapter, said = logging.getLogger("r2m_client.integrations.trl"), Said(doing)
    level = adapter.level
    adapter.addHandler(said)
    adapter.setLevel(logging.INFO)
    try:
        trainer.train()
    finally:
        adapter.removeHandler(said)
        adapter.setLevel(level)
