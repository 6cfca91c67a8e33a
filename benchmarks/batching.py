"""What batching wins: length windows, passes without padding, fairness, tokenizer threads.

Samples come from callers that each wait for their answers before they send more, so what waits is
what a server of that many callers has. Lengths are log-normal, as answers' are. Same samples for
every variant, variants in turns, medians; the first variant is there twice: its spread is noise.

    python benchmarks/batching.py                      # a model of 4 layers, made on the spot
    python benchmarks/batching.py --part threads
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from r2m_service.engine.embedding import PASS_TOKENS, Embedder
from r2m_service.engine.queue import WINDOW, BatchQueue, Budgets
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.loading import load_backbone

MOST = 1024
UNLIMITED = 1 << 40


@dataclass(eq=False)
class Sample:
    ids: tuple[int, ...]
    caller: int
    flow: str = ""
    feedback_bytes: int = 0
    gone: bool = False

    @property
    def tokens(self) -> int:
        return len(self.ids)


def small_model(folder: Path, *, layers: int = 4, width: int = 256) -> Backbone:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([Path(__file__).read_text(), __doc__ or ""], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(
        LlamaConfig(
            vocab_size=8000, hidden_size=width, intermediate_size=4 * width, num_labels=1,
            num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=MOST, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return load_backbone(str(folder), device="cpu", dtype="float32")


def length(draw: random.Random) -> int:
    """Tokens: median 180, some beyond 600."""
    return max(8, min(MOST, round(draw.lognormvariate(5.2, 0.7))))


def closed_loop(
    backbone: Backbone, *, callers: int, each: int, window: int, pass_tokens: int, seconds: float
) -> float:
    """Samples a second."""
    draw = random.Random(0)
    embedder = Embedder(
        backbone, cache_bytes=0, token_budget=16384, one_by_one=False, pass_tokens=pass_tokens
    )
    queue: BatchQueue[Sample] = BatchQueue(Budgets(16384, 256, UNLIMITED), window=window)
    left = [0] * callers

    def send(caller: int) -> None:
        left[caller] = each
        queue.add(
            Sample(tuple(draw.randrange(3, 8000) for _ in range(length(draw))), caller)
            for _ in range(each)
        )

    for caller in range(callers):
        send(caller)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        batch = queue.take()
        embedder.embed([one.ids for one in batch], states=[False] * len(batch))
        done += len(batch)
        for one in batch:
            left[one.caller] -= 1
            if left[one.caller] == 0:
                send(one.caller)
    return done / (time.perf_counter() - began)


def side_by_side(variants: dict[str, Callable[[], float]], turns: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, measure in variants.items():
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


def lengths(backbone: Backbone, arguments: argparse.Namespace) -> None:
    print("samples a second (ratio to the first)")
    for callers, each in ((8, 1), (32, 1), (32, 8), (128, 8)):
        variants = {
            "no window, one pass": (1, UNLIMITED),
            "the same again": (1, UNLIMITED),
            "window, one pass": (WINDOW, UNLIMITED),
            "no window, split": (1, PASS_TOKENS),
            "window, split": (WINDOW, PASS_TOKENS),
        }
        found = side_by_side(
            {
                name: partial(
                    closed_loop, backbone, callers=callers, each=each, window=window,
                    pass_tokens=tokens, seconds=arguments.seconds,
                )
                for name, (window, tokens) in variants.items()
            },
            arguments.turns,
        )  # fmt: skip
        base = found["no window, one pass"]
        shown = "   ".join(f"{name} {rate:.1f} ({rate / base:.2f})" for name, rate in found.items())
        print(f"{callers:4} callers of {each}: {shown}", flush=True)


def waste(backbone: Backbone, arguments: argparse.Namespace) -> None:
    print("padding that a pass may waste, 32 callers of 8: samples a second")
    found = side_by_side(
        {
            str(tokens): partial(
                closed_loop, backbone, callers=32, each=8, window=WINDOW, pass_tokens=tokens,
                seconds=arguments.seconds,
            )
            for tokens in (0, 32, 64, 128, 256, 512, 1024, UNLIMITED)
        },
        arguments.turns,
    )  # fmt: skip
    print("   ".join(f"{name}: {rate:.1f}" for name, rate in found.items()), flush=True)


def threads(backbone: Backbone, arguments: argparse.Namespace) -> None:
    import copy

    draw = random.Random(0)
    words = Path(__file__).read_text().split()
    texts = [" ".join(draw.choices(words, k=length(draw))) for _ in range(512)]
    parts = [texts[at : at + 32] for at in range(0, len(texts), 32)]

    def measure(count: int, copies: bool) -> float:
        own = [copy.deepcopy(backbone.text) if copies else backbone.text for _ in range(count)]
        with ThreadPoolExecutor(count) as pool:

            def run(at: int) -> None:
                for text in parts[at]:
                    own[at % count].pair("", text, raw=True, cut="right")

            began = time.perf_counter()
            list(pool.map(run, range(len(parts))))
            return len(texts) / (time.perf_counter() - began)

    found = side_by_side(
        {
            "1 thread": partial(measure, 1, False),
            "1 thread again": partial(measure, 1, False),
            "2 threads, a copy each": partial(measure, 2, True),
            "4 threads, a copy each": partial(measure, 4, True),
        },
        3 * arguments.turns,
    )
    print("texts tokenized a second (device idle)")
    print("   ".join(f"{name}: {rate:.0f}" for name, rate in found.items()), flush=True)


PARTS = {"lengths": lengths, "waste": waste, "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        backbone = small_model(Path(folder), layers=arguments.layers, width=arguments.width)
        for name, part in PARTS.items():
            if arguments.part in (name, "all"):
                part(backbone, arguments)


if __name__ == "__main__":
    main()
