"""verl: subclasses that score with the policy's hidden states and call align after its update.

verl computes rewards before it goes over the rollouts with the policy. The pass that brings the old
log probabilities is the first one on finished rollouts; the worker records it, asks for the run's
rewards, and sends them back beside the log probabilities. The trainer then writes them over those
that it had (vanilla ones, from `r2m_client.integrations.verl`).

This follows verl's FSDP workers (b178a3c, `verl.workers.fsdp_workers`) and was tested with
stand-ins for its objects only: it has not run on verl with its GPUs. Samples have to go through in
their order, one sequence on one GPU: dynamic batches, removed padding and Ulysses are refused.
docs/trainers.md has the lines that put these classes in.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r2m_client.integrations._rollouts import (
    Record,
    Rollout,
    RunFeedback,
    captured,
    real_tokens,
    rollouts_of,
)
from r2m_client.integrations.openrlhf import feedback_here

if TYPE_CHECKING:
    _Worker = Any
else:
    _Worker = object

REWARDS = "r2m_rewards"
"""The key of a worker's output that brings each rollout's reward, [B]."""


class FeedbackWorker(_Worker):
    """In front of verl's ActorRolloutRefWorker; made by `feedback_worker`.

    Attributes:
        r2m_record: records the final norm's output of `self.actor_module_fsdp`.
        r2m_open: opens this rank's feedback, once.
    """

    r2m_record: Record = staticmethod(captured)
    r2m_open = staticmethod(feedback_here)
    _r2m: RunFeedback | None = None

    def compute_log_prob(self, data: Any) -> Any:
        """verl's pass over finished rollouts, recorded on the way; its output has rewards besides.

        Args:
            data: DataProto: `prompts` [B, P] padded on the left, `responses` [B, R] on the right,
                `input_ids` and `attention_mask` [B, P + R].

        Raises:
            ValueError: settings under which states cannot be told apart.
            R2MError: one rollout has no reward.
        """
        if data.meta_info.get("is_lora"):  # the reference's pass, with the adapter switched off
            return super().compute_log_prob(data)
        output = self._recorded(data)
        rewards = self._feedback().score(self._rollouts(data.batch))
        output.batch[REWARDS] = output.batch["old_log_probs"].float().new_tensor(rewards)
        return output

    def update_actor(self, data: Any) -> Any:
        """verl's update, then one more pass over the same rollouts, then align.

        Raises:
            R2MError, RuntimeError: see `RunFeedback.align`.
        """
        rollouts = self._rollouts(data.batch)
        output = super().update_actor(data)
        self._recorded(data)
        output.meta_info["metrics"].update(self._feedback().align(rollouts))
        return output

    def _recorded(self, data: Any) -> Any:
        with self.r2m_record(self.actor_module_fsdp) as recording:
            output = super().compute_log_prob(data)
        ids = real_tokens(data.batch["input_ids"], data.batch["attention_mask"])
        self._feedback().keep(ids, recording.states())
        return output

    def _rollouts(self, batch: Mapping[str, Any]) -> list[Rollout]:
        mask = batch["attention_mask"]
        ids = real_tokens(batch["input_ids"], mask)
        width = len(batch["prompts"][0]) if len(batch["prompts"]) else 0
        prompts = real_tokens(batch["prompts"], [row[:width] for row in mask])
        return rollouts_of(ids, map(self._decoded, prompts), self._decoded)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    def _feedback(self) -> RunFeedback:
        if self._r2m is None:
            refuse_what_mixes_samples(self.config)
            self._r2m = self.r2m_open()
        return self._r2m


def refuse_what_mixes_samples(config: Any) -> None:
    """Settings of verl that reorder, join or share out sequences within a pass.

    Args:
        config: of `actor_rollout_ref`.

    Raises:
        ValueError: the first one that is on, by its full name.
    """
    for path, harmless in (
        ("rollout.log_prob_use_dynamic_bsz", False),
        ("model.use_remove_padding", False),
        ("actor.ulysses_sequence_parallel_size", 1),
    ):
        value = config
        for name in path.split("."):
            value = value.get(name, {}) if hasattr(value, "get") else {}
        if value not in ({}, None, harmless):
            raise ValueError(
                f"hidden states are recorded sample by sample: set actor_rollout_ref.{path}="
                f"{harmless}"
            )


def feedback_worker(base: type, record: Record = captured) -> type:
    """A worker class for verl's role mapping.

    Args:
        base: `verl.workers.fsdp_workers.AsyncActorRolloutRefWorker`.
        record: of hidden states.
    """
    made = type(f"Feedback{base.__name__}", (FeedbackWorker, base), {})
    made.r2m_record = staticmethod(record)  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("compute_log_prob", "update_actor"):
        # How verl deals out a method's batch is noted on the method itself.
        own = getattr(FeedbackWorker, name)
        setattr(made, name, _noted(own, getattr(base, name)))
    return made


def _noted(own: Any, theirs: Any) -> Any:
    @functools.wraps(theirs)
    def method(self: Any, data: Any) -> Any:
        return own(self, data)

    return method


class FeedbackTrainer(_Worker):
    """In front of verl's RayPPOTrainer: `class Mine(FeedbackTrainer, RayPPOTrainer)`."""

    _r2m_rewards: Any = None
    _r2m_placed = False

    def _compute_or_extract_reward(self, batch: Any, *given: Any, **named: Any) -> Any:
        """verl's, remembered: `fit` goes on with this very tensor, and it is filled in later."""
        found = super()._compute_or_extract_reward(batch, *given, **named)
        if isinstance(found, tuple) and not named.get("reward_for_val"):
            self._r2m_rewards, self._r2m_placed = found[0], False
        return found

    def _compute_old_log_prob(self, batch: Any) -> Any:
        """verl's, and the run's rewards in place of those that `fit` has.

        Raises:
            ValueError: rewards are computed elsewhere (`launch_reward_fn_async`).
        """
        found = super()._compute_old_log_prob(batch)
        rewards = found[0].batch.pop(REWARDS)
        if self._r2m_rewards is None:
            raise ValueError("set reward_model.launch_reward_fn_async=False: fit has no rewards")
        place_rewards(self._r2m_rewards, rewards, batch.batch["response_mask"])
        self._r2m_placed = True
        return found

    def _update_actor(self, batch: Any) -> Any:
        """verl's, with the run's rewards.

        Raises:
            ValueError: the pass that brings them was left out (rollout correction's bypass mode).
        """
        if not self._r2m_placed:
            raise ValueError(
                "this step has no rewards by the run: set "
                "algorithm.rollout_correction.bypass_mode=False"
            )
        return super()._update_actor(batch)


def place_rewards(token_rewards: Any, rewards: Any, response_mask: Any) -> None:
    """Write each rollout's reward at its last token, in place, and 0 at the others.

    Args:
        token_rewards: [B, R], as verl spreads rewards.
        rewards: [B].
        response_mask: [B, R], 1 at the response's tokens.

    Raises:
        ValueError: a rollout without a token, which has no place for a reward.
    """
    lengths = [int(sum(int(one) for one in row)) for row in response_mask]
    if len(lengths) != len(token_rewards) or len(lengths) != len(rewards) or 0 in lengths:
        raise ValueError(
            f"{len(rewards)} rewards for {len(token_rewards)} rollouts of {lengths} tokens: each "
            "has one, and a token to stand at"
        )
    for row, reward, mask in zip(token_rewards, rewards, response_mask, strict=True):
        last = max(place for place, one in enumerate(mask) if int(one))
        for place in range(len(row)):
            row[place] = reward if place == last else 0.0
