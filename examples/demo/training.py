"""TRL's RLOOTrainer with R2M rewards: the policy's own hidden states go along, the head follows.

One step: TRL generates and forwards the rollouts → the reward function sends texts and hidden
states to `score` → TRL updates the policy → the callback forwards the same sequences through the
updated policy and sends the fresh states to `align`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from r2m_client import Client, Group, Sample

GROUP_SIZE = 4
PROMPTS_PER_STEP = 4
NEW_TOKENS = 32


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


class HiddenStates:
    """Remembers the last no-grad forward pass of the policy: token ids, mask, last-layer states.

    RLOO forwards prompt + completion in one such pass right before it asks for rewards.
    `last_hidden_state` is taken after the final norm and has the last token's state.
    """

    def __init__(self, policy: Any) -> None:
        self._base = policy.base_model
        self._seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._base.register_forward_hook(self._hook, with_kwargs=True)

    def _hook(self, _module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if torch.is_grad_enabled() or ids is None or mask is None or ids.shape != mask.shape:
            return  # an optimisation pass, or a decoding step that sees one token
        self._seen = (ids, mask, output.last_hidden_state)

    def ragged(self, rows: int) -> list[torch.Tensor]:
        """Each rollout's states, (tokens, width), without padding."""
        if self._seen is None or len(self._seen[0]) != rows:
            raise RuntimeError("the policy has not forwarded these rollouts")
        _, mask, hidden = self._seen
        return [states[row.bool()] for states, row in zip(hidden, mask, strict=True)]

    @torch.no_grad()
    def fresh(self) -> list[torch.Tensor]:
        """The same sequences through the policy as it is now."""
        assert self._seen is not None
        ids, mask, _ = self._seen
        self._base(input_ids=ids, attention_mask=mask, use_cache=False)
        return self.ragged(len(ids))


class R2M(TrainerCallback):
    """The reward function and the callback in one: five places where a trainer meets the service.

    Args:
        show: hears of every finished step.
        doing: hears what the step is at.
    """

    __name__ = "r2m"  # TRL names its metrics after the reward function

    def __init__(
        self,
        client: Client,
        run: str,
        policy: Any,
        *,
        show: Callable[[StepRow], None],
        doing: Callable[[str], None],
    ) -> None:
        self._client, self._run, self._show, self._doing = client, run, show, doing
        self._states = HiddenStates(policy)
        self._samples: list[Sample] = []
        self._scored: Any = None
        self._step = 0
        self._sent = client.bytes_sent
        self._started = time.monotonic()

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        **_: Any,
    ) -> list[float | None]:
        """TRL asks for rewards: send texts and hidden states; None where there is no reward."""
        self._doing(f"step {self._step + 1}: scoring {len(prompts)} rollouts")
        ragged = self._states.ragged(len(prompts))
        if any(len(s) <= len(ids) for s, ids in zip(ragged, completion_ids, strict=True)):
            raise RuntimeError("the policy's last pass was not over prompt + completion")
        self._samples = [
            Sample(
                id=f"{self._step + 1}-{place}",
                prompt=prompt[-1]["content"],
                response=completion[-1]["content"],
                hidden_states=states,
            )
            for place, (prompt, completion, states) in enumerate(
                zip(prompts, completions, ragged, strict=True)
            )
        ]
        self._scored = self._client.score(self._samples, run=self._run)
        self._doing(f"step {self._step + 1}: updating the policy")
        return self._scored.rewards

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The policy has moved: align the head with its fresh hidden states."""
        self._step += 1
        self._doing(f"step {self._step}: aligning the head")
        fresh = [
            Sample(id=old.id, prompt=old.prompt, response=old.response, hidden_states=states)
            for old, states in zip(self._samples, self._states.fresh(), strict=True)
        ]
        groups = [
            Group(id=f"{self._step}-{start}", samples=fresh[start : start + GROUP_SIZE])
            for start in range(0, len(fresh), GROUP_SIZE)
        ]
        answer = self._client.align(self._run, step=self._step, groups=groups)
        self._show(self._row(answer))
        self._doing(f"step {self._step + 1}: generating")

    def _row(self, answer: Any) -> StepRow:
        now, sent = time.monotonic(), self._client.bytes_sent
        good = [score for score in self._scored.scores if score.error is None]
        drift = answer.drift
        row = StepRow(
            step=self._step,
            reward=statistics.fmean(score.reward for score in good) if good else float("nan"),
            vanilla_reward=(
                statistics.fmean(score.vanilla_reward for score in good) if good else float("nan")
            ),
            omega=self._scored.omega,
            head=answer.head,
            verdict=answer.verdict,
            accepted=answer.accepted,
            bt=answer.loss.bt,
            gre=answer.loss.gre,
            kl=answer.loss.kl,
            spread_ratio=drift.spread_ratio if drift else None,
            rank_correlation=drift.rank_correlation if drift else None,
            bytes_sent=sent - self._sent,
            seconds=now - self._started,
        )
        self._started, self._sent = now, sent
        return row


def train(
    policy: Any, tokenizer: Any, reward: R2M, prompts: list[str], *, steps: int, out: Path
) -> None:
    """Train the policy for some steps with RLOO on a CPU or whatever TRL finds."""
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    trainer = RLOOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=[reward],
        train_dataset=Dataset.from_list(rows),
        callbacks=[reward],
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
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)  # the table says it better
    trainer.train()
