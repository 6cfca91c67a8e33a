"""The policy's states of the rollouts: out of passes TRL runs anyway, or by one of our own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from r2m_client.capture import Pass, Recorder, Taken
from r2m_client.capture._find import unwrapped


class Policy:
    """A trainer's policy, and what a Recorder sees of it.

    Args:
        model: before or after it is wrapped; hooks on its parts see every pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.recorder = Recorder(model)
        self._ours = False
        self._block = self.recorder.recording(self._by_trl)
        self._seen: Taken = self._block.__enter__()

    def close(self) -> None:
        """Take the hooks off."""
        self._block.__exit__(None, None, None)
        self.recorder.close()

    def forget(self) -> None:
        """Let go of the passes seen so far: they were not over rollouts to be scored."""
        self._seen.free()

    def rollouts(
        self,
        trainer: Any,
        prompts: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Any],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Token ids and states of prompt + completion, [S] and [S, D_p] each, of this rank.

        TRL's own pass over them is used where it ran one that says what the policy says: all
        ranks decide this alike, since a pass of a sharded policy needs all of them.

        Raises:
            RuntimeError: the pass was over other tokens.
            ValueError: nobody says what the prompts' tokens are.
        """
        rows = sum(0 if one.states is None else len(one.states) for one in self._seen.passes)
        try:
            if rows >= len(prompts) and _clean(trainer):
                return self._seen_rollouts(completion_ids)
        finally:
            self.forget()
        ids = [
            torch.tensor([*prompt, *completion], dtype=torch.long)
            for prompt, completion in zip(
                _prompt_ids(trainer, prompts, columns), completion_ids, strict=True
            )
        ]
        return ids, self.forward(trainer, ids)

    @torch.no_grad()
    def forward(self, trainer: Any, ids: Sequence[Tensor]) -> list[Tensor]:
        """One pass over texts by the policy as it is now, [S, D_p] each; all ranks together."""
        model, size = trainer.model, trainer.args.per_device_train_batch_size
        last = inspect.signature(unwrapped(trainer.model).forward).parameters
        # All but the logits is wanted; one of them is the fewest that a causal LM makes.
        extra = {"logits_to_keep": 1} if "logits_to_keep" in last else {}
        training, found = model.training, []
        self._ours = True
        model.eval()  # dropout would make the states noise
        try:
            for start in range(0, len(ids), size):
                tokens = nn.utils.rnn.pad_sequence(list(ids[start : start + size]), True)
                mask = torch.zeros_like(tokens)
                for row, own in enumerate(ids[start : start + size]):
                    mask[row, : len(own)] = 1
                device = trainer.accelerator.device
                with self.recorder.recording() as taken, trainer.accelerator.autocast():
                    model(
                        input_ids=tokens.to(device),
                        attention_mask=mask.to(device),
                        use_cache=False,
                        **extra,
                    )
                found += taken.expect(len(own) for own in ids[start : start + size]).states()
        finally:
            model.train(training)
            self._ours = False
        return found

    def _by_trl(self, one: Pass) -> bool:
        """Whether it is a pass over whole texts that only looks: none of sampling or training."""
        return not self._ours and not one.grad and not one.caching

    def _seen_rollouts(
        self, completion_ids: Sequence[Sequence[int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        count = len(completion_ids)
        ids, states = self._seen.token_ids()[:count], self._seen.states()[:count]
        found: list[Tensor] = []
        for place, (own, completion) in enumerate(zip(ids, completion_ids, strict=True)):
            tokens = [] if own is None else own.tolist()
            if tokens[len(tokens) - len(completion) :] != list(completion):
                raise RuntimeError(
                    f"rollout {place} has {len(completion)} completion tokens, and the policy's "
                    f"pass over {len(tokens)} tokens does not end in them"
                )
            found.append(torch.tensor(tokens, dtype=torch.long))
        return found, states


def _clean(trainer: Any) -> bool:
    """Whether TRL's pass over the rollouts, if it ran one, gives the states of our own."""
    if trainer.mask_truncated_completions:  # it hides those completions from the policy
        return False
    model = unwrapped(trainer.model)
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules()):
        return False
    if not any("Rotary" in type(part).__name__ for part in model.modules()):
        return False  # absolute positions: TRL's left padding shifts them
    # Without a reference model the policy is its own, with LoRA switched off: which pass was it?
    return trainer.beta == 0.0 or trainer.ref_model is not None


def _prompt_ids(
    trainer: Any, prompts: Sequence[Any], columns: Mapping[str, Any]
) -> Sequence[Sequence[int]]:
    if "prompt_token_ids" in columns:
        return columns["prompt_token_ids"]
    if getattr(trainer, "rollout_func", None) is not None:
        raise ValueError(
            "rollout_func makes its own prompt tokens: let it return them as `prompt_token_ids`, "
            "too"
        )
    # As TRL itself does before it generates; it may change what it is given.
    return trainer._tokenize_prompts(copy.deepcopy(list(prompts)))[0]
