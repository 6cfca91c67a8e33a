"""Makes lengths.txt: token counts of prompt + response of AlpacaEval, by SmolLM2's tokenizer.

    R2M_TEST_DATA=folder python -m bench.lengths

The list is committed, so that everybody measures on the same lengths; the texts may not be shipped.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

from bench.models import smollm2
from bench.texts import LENGTHS

COUNT = 512


def main() -> None:
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    tokenizer = loader.from_pretrained(str(smollm2(print)))
    path = Path(os.environ["R2M_TEST_DATA"]) / "alpaca_eval_groups.jsonl.gz"
    pairs: list[tuple[str, str]] = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            group = json.loads(line)
            pairs += [(group["prompt"], one["text"]) for one in group["responses"]]
    drawn = random.Random(0).sample(pairs, COUNT)
    counts = sorted(len(tokenizer(prompt + response)["input_ids"]) for prompt, response in drawn)
    LENGTHS.write_text("\n".join(str(one) for one in counts) + "\n")
    print(f"{COUNT} lengths, mean {sum(counts) / COUNT:.0f}, median {counts[COUNT // 2]}")


if __name__ == "__main__":
    main()
