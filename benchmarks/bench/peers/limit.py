"""The limit: the bare model on token ids that are ready, with no server around it.

    python -m bench.peers.limit FOLDER [DTYPE DEVICE]

It reads jobs (JSON lines) and answers each with its seconds.

A job is `{"texts": [...], "window": 1 or 32}`: one by one and unpadded, or in windows
of that many, sorted by length.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from bench.peers.model import RewardModel


class Limit:
    """The loop that a server can at best be as fast as."""

    def __init__(self, folder: str, dtype: str = "float32", device: str = "cpu") -> None:
        self.model = RewardModel(folder, dtype=dtype, device=device)

    def seconds(self, texts: list[str], window: int) -> float:
        """Wall time of all texts, tokenized beforehand."""
        ids = sorted((self.model.tokenizer(text)["input_ids"] for text in texts), key=len)
        batches = [self._padded(ids[at : at + window]) for at in range(0, len(ids), window)]
        started = time.perf_counter()
        for batch in batches:
            self.model.logits(*batch)
        return time.perf_counter() - started

    def _padded(self, ids: list[list[int]]) -> tuple[Any, Any]:
        import torch

        longest = max(len(one) for one in ids)
        # The classifier finds the last real token by its padding id.
        pad = self.model.tokenizer.pad_token_id
        rows = [one + [pad] * (longest - len(one)) for one in ids]
        mask = [[1] * len(one) + [0] * (longest - len(one)) for one in ids]
        return torch.tensor(rows), torch.tensor(mask)


def main() -> None:
    limit = Limit(*sys.argv[1:])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"seconds": limit.seconds(job["texts"], job["window"])}), flush=True)


if __name__ == "__main__":
    main()
