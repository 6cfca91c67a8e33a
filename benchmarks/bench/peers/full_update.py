"""A full update of the reward model on a batch of groups: the whole backbone, one AdamW step.

    python -m bench.peers.full_update FOLDER    reads jobs (JSON lines), answers seconds and bytes

A job is `{"groups": [[text, ...], ...]}`. The loss is the paper's, BT + GRE on pseudo labels
(α = 0.3), the same that align takes; a group's activations are let go before the next one's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from bench.measure import peak_of
from bench.peers.model import RewardModel

ALPHA = 0.3


class FullUpdate:
    """The model in training, its optimizer state kept from step to step."""

    def __init__(self, folder: str) -> None:
        import torch

        self.model = RewardModel(folder)
        self.optimizer = torch.optim.AdamW(self.model.model.parameters(), lr=1e-6)

    def step(self, groups: list[list[str]]) -> None:
        """One step on all groups."""
        from r2m_service.modeling.loss import bradley_terry, group_reward_entropy

        self.optimizer.zero_grad(set_to_none=True)
        for texts in groups:
            tokens: Any = self.model.tokenizer(texts, padding=True, return_tensors="pt")
            r_K = self.model.model(**tokens, use_cache=False).logits[:, 0]
            loss = (1.0 - ALPHA) * bradley_terry(r_K.max(), r_K.min())
            loss = loss + ALPHA * group_reward_entropy(r_K)
            (loss / len(groups)).backward()
        self.optimizer.step()


def main() -> None:
    update = FullUpdate(sys.argv[1])
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        groups = json.loads(line)["groups"]
        started = time.perf_counter()
        grown = peak_of(lambda groups=groups: update.step(groups))
        print(json.dumps({"seconds": time.perf_counter() - started, "bytes": grown}), flush=True)


if __name__ == "__main__":
    main()
