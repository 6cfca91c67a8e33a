"""What every peer runs: a transformers classifier over a padded batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


class RewardModel:
    """Texts to rewards, as trainers' own reward servers do it."""

    def __init__(self, folder: str, *, dtype: str = "float32", device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        loader: Any = AutoTokenizer
        classifier: Any = AutoModelForSequenceClassification
        self.tokenizer = loader.from_pretrained(folder)
        self.model = classifier.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        self.model.eval()
        self.device = device

    def rewards(self, texts: Sequence[str]) -> list[float]:
        """One reward a text, padded to the longest."""
        tokens = self.tokenizer(list(texts), padding=len(texts) > 1, return_tensors="pt")
        return self.logits(tokens["input_ids"], tokens["attention_mask"])

    def rewards_of_all(self, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers of several calls, computed as one batch."""
        flat = iter(self.rewards([text for call in calls for text in call["texts"]]))
        return [{"rewards": [next(flat) for _ in call["texts"]]} for call in calls]

    def logits(self, ids: Any, mask: Any) -> list[float]:
        """The classifier's outputs of token ids [N, S]."""
        import torch

        with torch.inference_mode():
            out = self.model(
                input_ids=ids.to(self.device),
                # One text alone has no padding to hide, and a faster kernel without a mask.
                attention_mask=None if len(ids) == 1 else mask.to(self.device),
                use_cache=False,
            )
        return out.logits[:, 0].float().tolist()
