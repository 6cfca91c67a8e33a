"""How much a reward moves with the batch it comes in, by dtype of the backbone.

Padding and other shapes make the backbone's kernels round differently. The figure that matters is
the movement against the rewards' own spread, and how many pairs change their order.

    python benchmarks/batch_rounding.py                 # SmolLM2-135M with the demo's head
    python benchmarks/batch_rounding.py --model FOLDER --dtypes bfloat16
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import torch

from r2m_service.modeling.loading import load_backbone

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo"
sys.path.insert(0, str(DEMO))


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewards alone against rewards in a batch of 8.")
    parser.add_argument("--model", default="", help="a reward model; default: the demo's")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--texts", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, head = arguments.model, None
    if not model:
        from model import DEFAULT_CACHE, ensure_smollm2

        model, head = str(ensure_smollm2(DEFAULT_CACHE, say=print)), DEMO / "head.safetensors"
    exact: torch.Tensor | None = None
    print("dtype      moved by batch (max / spread)  pairs turned  against float32 (max / spread)")
    for dtype in arguments.dtypes:
        backbone = load_backbone(model, head_file=head, device="cpu", dtype=dtype)
        ids = [backbone.text.pair(*text).ids for text in texts(arguments.texts)]
        alone = torch.stack([backbone.encode([one])[0].rte_R for one in ids])
        batches = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        together = torch.stack([one.rte_R for batch in batches for one in backbone.encode(batch)])
        ours, theirs = backbone.vanilla(together), backbone.vanilla(alone)
        exact = theirs if exact is None else exact
        spread = float(theirs.std())
        turned = sum(
            bool((ours[a] - ours[b]) * (theirs[a] - theirs[b]) < 0)
            for a, b in combinations(range(len(ids)), 2)
        )
        pairs = len(ids) * (len(ids) - 1) // 2
        print(
            f"{dtype:10} {float((ours - theirs).abs().max()) / spread:>28.2e}  "
            f"{turned:>5} of {pairs:<4} {float((theirs - exact).abs().max()) / spread:>28.2e}"
        )


def texts(count: int) -> list[tuple[str, str]]:
    """Prompts of the demo with made responses of very different lengths."""
    from prompts import PROMPTS

    sentence = "It depends on what you have at hand, and on how much time there is. "
    return [
        (PROMPTS[n % len(PROMPTS)], sentence * (1 + (5 * n) % 12) + f"Number {n}.")
        for n in range(count)
    ]


if __name__ == "__main__":
    main()
