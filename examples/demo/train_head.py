"""Trains the demo's reward head on human preferences, and says how good it is.

The reward model is SmolLM2-135M-Instruct, frozen, with a linear head on the hidden state H_last
of the last token of the chat-formatted (prompt, response): r = w·H_last + b. This script computes
H_last once for every text (kept in the cache folder), fits w by logistic Bradley-Terry with L2 on
the majority votes of the PandaLM human-annotated test set, and measures accuracy on prompts that
took no part in the fit.

    python examples/demo/train_head.py --data pandalm_human_pairs.jsonl.gz

It writes head.safetensors and HEAD.md. Same data, seed and machine: same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import random
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors.torch
import torch
from model import DEFAULT_CACHE, LICENCE, NAME, DemoModelError, ensure_smollm2
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
DATA_FILE = "pandalm_human_pairs.jsonl.gz"
DATA_NAME = "PandaLM human-annotated test set"
DATA_LICENCE = "Apache-2.0"
TRAINED_ON = "2026-11-23"  # a constant: the clock would change the file's bytes

MAX_TOKENS = 1024
BATCH_TOKENS = 4096  # padded tokens of one forward pass
TEST_SHARE = 0.2
FOLDS = 5
L2_GRID = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # falling, for warm starts
NEWTON_TOLERANCE = 1e-10
SMALLEST_STEP = 1e-6

console = Console(stderr=True)
st: Any = safetensors.torch  # these two have no usable type hints
linalg: Any = torch.linalg


def say(line: str) -> None:
    """One line of progress, as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class TextKey(NamedTuple):
    """One text that gets a reward."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Pair:
    """One human judgement with a majority for one side."""

    prompt: str
    winner: str
    loser: str

    @property
    def keys(self) -> tuple[TextKey, TextKey]:
        return TextKey(self.prompt, self.winner), TextKey(self.prompt, self.loser)


# --- data ---------------------------------------------------------------------------------------


def majority(votes: Sequence[int]) -> int:
    """The value more than half of the votes have; 0 (a tie) where there is none."""
    value, count = Counter(votes).most_common(1)[0]
    return value if 2 * count > len(votes) else 0


def load_pairs(path: Path) -> tuple[list[Pair], Counter[str]]:
    """Pairs with a majority, and how many rows were used or dropped and why."""
    pairs: list[Pair] = []
    fate: Counter[str] = Counter()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            choice = majority(row["votes"])
            if not all(isinstance(row[key], str) for key in ("prompt", "a", "b")):
                fate["with a response that is no text"] += 1  # a few are JSON booleans
            elif choice == 0:
                fate["ties or without a majority"] += 1
            else:
                winner, loser = ("a", "b") if choice == 1 else ("b", "a")
                pairs.append(Pair(row["prompt"], row[winner], row[loser]))
                fate["used"] += 1
    return pairs, fate


def split_prompts(prompts: Sequence[str], seed: int) -> tuple[set[str], set[str]]:
    """Training and held-out prompts; depends on the set of prompts and the seed only."""
    order = sorted(set(prompts))
    random.Random(seed).shuffle(order)
    held_out = round(TEST_SHARE * len(order))
    return set(order[held_out:]), set(order[:held_out])


# --- reward token embeddings --------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def cache_key(folder: Path, keys: Sequence[TextKey]) -> str:
    """Hash of everything the embeddings depend on, batching included (it moves last bits)."""
    names = ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors")
    parts = [file_sha256(folder / name) for name in names]
    content = json.dumps([parts, MAX_TOKENS, BATCH_TOKENS, torch.__version__, keys])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def token_ids(tokenizer: Any, key: TextKey) -> list[int]:
    """One user turn and one assistant turn in the chat template; no generation prompt."""
    turns = [
        {"role": "user", "content": key.prompt},
        {"role": "assistant", "content": key.response},
    ]
    return cast(list[int], tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"])


def batches(lengths: dict[int, int]) -> list[list[int]]:
    """Indices in order of length, in batches of at most `BATCH_TOKENS` padded tokens."""
    result: list[list[int]] = []
    for index in sorted(lengths, key=lambda i: (lengths[i], i)):
        # The newest text is the longest, so it alone sets the padded length.
        if result and (len(result[-1]) + 1) * lengths[index] <= BATCH_TOKENS:
            result[-1].append(index)
        else:
            result.append([index])
    return result


@torch.inference_mode()
def last_states(backbone: Any, ids: Sequence[list[int]], pad: int) -> Tensor:
    """(B, D): after the final norm, at each text's last real token.

    The mask comes from the lengths, since SmolLM2 pads with the token that ends every turn.
    """
    lengths_B = torch.tensor([len(row) for row in ids])
    width = int(lengths_B.max())
    ids_BS = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
    mask_BS = (torch.arange(width)[None, :] < lengths_B[:, None]).long()
    H_BSD = backbone(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
    return cast(Tensor, H_BSD[torch.arange(len(ids)), lengths_B - 1])


def compute_embeddings(folder: Path, keys: Sequence[TextKey]) -> dict[str, Tensor]:
    """`H_ND` float32 with N = len(keys), and `tokens_N`; rows of too long texts are zero."""
    logging.disable_progress_bar()
    tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(folder)
    backbone: Any = cast(Any, AutoModel).from_pretrained(folder, dtype=torch.float32).eval()
    ids = [token_ids(tokenizer, key) for key in keys]
    lengths = {i: len(row) for i, row in enumerate(ids) if len(row) <= MAX_TOKENS}
    H_ND = torch.zeros(len(keys), int(backbone.config.hidden_size))
    # Longest first: the time left is then over- rather than underestimated.
    for batch in track(batches(lengths)[::-1], "Embedding texts", console=console):
        H_ND[batch] = last_states(backbone, [ids[i] for i in batch], tokenizer.pad_token_id)
    return {"H_ND": H_ND, "tokens_N": torch.tensor([len(row) for row in ids])}


def embeddings(folder: Path, keys: Sequence[TextKey], cache: Path) -> dict[str, Tensor]:
    """`compute_embeddings`, kept in `cache` under the hash of all that goes into it."""
    path = cache / f"pandalm-rte-{cache_key(folder, keys)}.safetensors"
    if path.is_file():
        say(f"Embeddings of {len(keys)} texts from {path.name}")
        return cast(dict[str, Tensor], st.load_file(path))
    say(f"Embedding {len(keys)} texts (3 minutes or more on one core, once)")
    result = compute_embeddings(folder, keys)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    st.save_file(result, unfinished)
    unfinished.rename(path)
    return result


# --- the fit ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Texts as numbers: `H_ND` float64, and each pair as the rows of its winner and loser."""

    H_ND: Tensor
    chars_N: Tensor
    winner_P: Tensor
    loser_P: Tensor
    prompts: tuple[str, ...]

    def rows(self, prompts: set[str]) -> Tensor:
        """Indices of the pairs whose prompt is one of `prompts`."""
        return torch.tensor([i for i, prompt in enumerate(self.prompts) if prompt in prompts])

    def texts(self, rows_P: Tensor) -> Tensor:
        """The texts of those pairs, each once."""
        return cast(Any, torch.cat([self.winner_P[rows_P], self.loser_P[rows_P]])).unique()

    def scale(self, rows_P: Tensor) -> Tensor:
        """(D,): each feature's standard deviation over the texts of those pairs."""
        return self.H_ND[self.texts(rows_P)].std(0, correction=0).clamp_min(1e-12)

    def gaps(self, rows_P: Tensor) -> Tensor:
        """(P, D): winner minus loser."""
        return self.H_ND[self.winner_P[rows_P]] - self.H_ND[self.loser_P[rows_P]]


def bt_objective(X_PD: Tensor, w_D: Tensor, l2: float) -> float:
    """Mean of -log sigmoid(X w), plus l2/2 |w|²."""
    return float(-logsigmoid(X_PD @ w_D).mean() + 0.5 * l2 * w_D @ w_D)


def fit_bt(X_PD: Tensor, l2: float, start_D: Tensor) -> Tensor:
    """(D,): the minimum of `bt_objective`, which is strictly convex, by damped Newton."""
    w_D = start_D
    value = bt_objective(X_PD, w_D, l2)
    for _ in range(50):
        p_P = torch.sigmoid(-(X_PD @ w_D))  # probability of the wrong order
        gradient_D = l2 * w_D - X_PD.T @ p_P / len(X_PD)
        if float(gradient_D.abs().max()) < NEWTON_TOLERANCE:
            break
        curvature_DD = X_PD.T @ (X_PD * (p_P * (1 - p_P) / len(X_PD))[:, None])
        curvature_DD.diagonal().add_(l2)
        step_D = cast(Tensor, linalg.solve(curvature_DD, gradient_D))
        size = 1.0
        while bt_objective(X_PD, w_D - size * step_D, l2) > value and size > SMALLEST_STEP:
            size /= 2
        w_D = w_D - size * step_D
        value = bt_objective(X_PD, w_D, l2)
    return w_D


def fit_path(X_PD: Tensor, grid: Sequence[float]) -> list[Tensor]:
    """One `fit_bt` per L2 of the falling `grid`, each started from the one before."""
    result: list[Tensor] = []
    w_D = X_PD.new_zeros(X_PD.shape[1])
    for l2 in grid:
        w_D = fit_bt(X_PD, l2, w_D)
        result.append(w_D)
    return result


def cross_validated_loss(features: Features, prompts: set[str], seed: int) -> list[float]:
    """Per L2 of the grid: the mean Bradley-Terry loss of pairs whose prompt was left out."""
    order = sorted(prompts)
    random.Random(seed).shuffle(order)
    loss = torch.zeros(len(L2_GRID), dtype=torch.float64)
    for fold in range(FOLDS):
        left_out = set(order[fold::FOLDS])
        fit_P, judge_P = features.rows(prompts - left_out), features.rows(left_out)
        scale_D = features.scale(fit_P)
        judge_PD = features.gaps(judge_P) / scale_D
        for i, w_D in enumerate(fit_path(features.gaps(fit_P) / scale_D, L2_GRID)):
            loss[i] -= logsigmoid(judge_PD @ w_D).sum()
    return floats(loss / len(features.rows(prompts)))


@dataclass(frozen=True)
class Fit:
    """A head and how it did; rewards have mean 0 and deviation 1 over the training texts."""

    w_D: Tensor
    b: float
    l2: float
    bt_scale: float  # P(a over b) = sigmoid(bt_scale * (r_a - r_b))
    cv_loss: float
    train_pairs: int
    train_accuracy: float
    test_pairs: int
    test_right: float
    length_right: float

    @property
    def test_accuracy(self) -> float:
        return self.test_right / self.test_pairs

    @property
    def length_accuracy(self) -> float:
        return self.length_right / self.test_pairs


def floats(values: Tensor) -> list[float]:
    """A one-dimensional tensor as a list (`tolist` itself is untyped)."""
    return cast(Any, values).tolist()


def right(score_N: Tensor, features: Features, rows_P: Tensor) -> float:
    """How many of those pairs `score_N` orders as people did; an equal score counts half."""
    gap_P = score_N[features.winner_P[rows_P]] - score_N[features.loser_P[rows_P]]
    return float((gap_P > 0).sum()) + 0.5 * float((gap_P == 0).sum())


def fit_split(features: Features, seed: int) -> Fit:
    """Chooses L2 and fits on the training prompts; judges on the held-out ones."""
    train, test = split_prompts(features.prompts, seed)
    train_P, test_P = features.rows(train), features.rows(test)
    losses = cross_validated_loss(features, train, seed)
    best = min(range(len(L2_GRID)), key=losses.__getitem__)
    scale_D = features.scale(train_P)
    path = fit_path(features.gaps(train_P) / scale_D, L2_GRID[: best + 1])
    raw_D = path[-1] / scale_D  # the standardisation folded into the weights
    score_N = features.H_ND @ raw_D
    spread, mean = torch.std_mean(score_N[features.texts(train_P)], correction=0)
    return Fit(
        w_D=raw_D / spread,
        b=float(-mean / spread),
        l2=L2_GRID[best],
        bt_scale=float(spread),
        cv_loss=losses[best],
        train_pairs=len(train_P),
        train_accuracy=right(score_N, features, train_P) / len(train_P),
        test_pairs=len(test_P),
        test_right=right(score_N, features, test_P),
        length_right=right(features.chars_N, features, test_P),
    )


def wilson(right_count: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    share = right_count / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


# --- what is written ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Held-out results over several splits."""

    accuracies: tuple[float, ...]
    length_accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def better_than_length(self) -> int:
        """In how many of the splits the head beats "the longer response wins"."""
        return sum(a > b for a, b in zip(self.accuracies, self.length_accuracies, strict=True))

    @property
    def length_mean(self) -> float:
        return sum(self.length_accuracies) / len(self.length_accuracies)


def head_bytes(fit: Fit, metadata: dict[str, str]) -> bytes:
    """The head as a safetensors file.

    Written by hand: the library puts metadata in an order that changes from run to run.
    """
    width = len(fit.w_D)
    weight = struct.pack(f"<{width}f", *floats(fit.w_D))
    bias = struct.pack("<f", fit.b)
    header: dict[str, Any] = {
        "__metadata__": dict(sorted(metadata.items())),
        "head.weight": _entry([1, width], 0, len(weight)),
        "head.bias": _entry([1], len(weight), len(weight) + len(bias)),
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    return struct.pack("<Q", len(text)) + text + weight + bias


def _entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def provenance(fit: Fit, spread: Spread, folder: Path, seed: int) -> dict[str, str]:
    """The head's string metadata."""
    low, high = wilson(fit.test_right, fit.test_pairs)
    seeds = spread.accuracies
    return {
        "format": "r2m-head-1",
        "backbone": NAME,
        "backbone_licence": LICENCE,
        "backbone_sha256": file_sha256(folder / "model.safetensors"),
        "backbone_dtype": "float32",
        "tokenizer_sha256": file_sha256(folder / "tokenizer.json"),
        "chat_template_sha256": file_sha256(folder / "chat_template.jinja"),
        "text": "chat template with its default system prompt, one user and one assistant turn, "
        "no generation prompt; state after the final norm at the last token",
        "max_tokens": str(MAX_TOKENS),
        "data": DATA_NAME,
        "data_licence": DATA_LICENCE,
        "labels": "majority of three human votes, ties dropped",
        "objective": "logistic Bradley-Terry with L2 on standardised features",
        "l2": f"{fit.l2:g}",
        "l2_choice": f"{FOLDS}-fold cross-validation by prompt inside the training side",
        "cross_validated_loss": f"{fit.cv_loss:.4f}",
        "reward_scale": "mean 0, standard deviation 1 over the training responses",
        "bt_scale": f"{fit.bt_scale:.4f}",
        "split": f"by prompt, {1 - TEST_SHARE:.0%} / {TEST_SHARE:.0%}",
        "split_seed": str(seed),
        "train_pairs": str(fit.train_pairs),
        "held_out_pairs": str(fit.test_pairs),
        "train_accuracy": f"{fit.train_accuracy:.4f}",
        "held_out_accuracy": f"{fit.test_accuracy:.4f}",
        "held_out_accuracy_95": f"{low:.4f} {high:.4f}",
        "held_out_length_baseline": f"{fit.length_accuracy:.4f}",
        "other_splits": f"{len(seeds)} seeds: mean {spread.mean:.4f}, "
        f"range {min(seeds):.4f} {max(seeds):.4f}, length baseline {spread.length_mean:.4f}",
        "script": "examples/demo/train_head.py",
        "date": TRAINED_ON,
    }


def head_page(fit: Fit, spread: Spread, fate: Counter[str], prompts: int, seed: int) -> str:
    """HEAD.md."""
    low, high = wilson(fit.test_right, fit.test_pairs)
    seeds = spread.accuracies
    dropped = ", ".join(f"{n} {why}" for why, n in sorted(fate.items()) if why != "used")
    return f"""# The demo's reward head

<!-- written by train_head.py; do not edit -->

`head.safetensors` makes a reward model of {NAME} ({LICENCE}, frozen, float32):
r = w·H_last + b, with H_last the hidden state after the final norm at the last token of the
chat-formatted text (default system prompt, one user and one assistant turn). `head.weight` is
(1, {len(fit.w_D)}), `head.bias` (1,), both float32; the file's metadata repeats what is below.

It is a small head on a small model, good enough to show the service at work. It is not a reward
model to train a policy with.

| | |
| --- | --- |
| data | {DATA_NAME} ({DATA_LICENCE}); majority of three human votes |
| pairs | {fate["used"]} over {prompts} prompts ({dropped} dropped) |
| split | by prompt, seed {seed}: {fit.train_pairs} pairs to fit, {fit.test_pairs} held out |
| fit | Bradley-Terry, L2 = {fit.l2:g} by {FOLDS}-fold cross-validation inside the training side |
| **held-out accuracy** | **{fit.test_accuracy:.3f}** (95 %: {low:.3f} to {high:.3f}, Wilson) |
| the longer response wins, same pairs | {fit.length_accuracy:.3f} |
| accuracy on the training side | {fit.train_accuracy:.3f} |
| {len(seeds)} other splits, each fit anew | mean {spread.mean:.3f}, from {min(seeds):.3f} \
to {max(seeds):.3f}; length {spread.length_mean:.3f}, beaten in {spread.better_than_length} |
| scale | rewards have mean 0 and deviation 1 over the training responses; \
P(a over b) = sigmoid({fit.bt_scale:.2f} · (r_a - r_b)) |

{verdict(fit)}
Pairs of one prompt are not independent, so the interval is too narrow; the other splits (which
overlap) show how far one split can be off. The default seed was fixed before any result was seen.
The head is fit on the training side only: its held-out accuracy is true of this file.

## Train it again

```
python examples/demo/train_head.py --data {DATA_FILE}
```

One line of the data is `{{"prompt", "a", "b", "votes": [2, 2, 1]}}`, a vote being 1 (a), 2 (b) or
0 (tie); the votes come from the PandaLM project's human-annotated test set. The embeddings are
kept in `.cache/demo/`, so a second run takes half a minute. Same data, seed and machine: same
bytes.
"""


def verdict(fit: Fit) -> str:
    """Whether the head beats length on its own held-out pairs, in a sentence."""
    if fit.test_right > fit.length_right:
        return "On its own held-out pairs the head beats length."
    return "On its own held-out pairs the head is no better than length."


def report(fit: Fit, spread: Spread, fate: Counter[str], seed: int) -> None:
    """Prints the numbers."""
    low, high = wilson(fit.test_right, fit.test_pairs)
    say(f"rows: {dict(sorted(fate.items()))}")
    say(
        f"split seed {seed}: {fit.train_pairs} pairs to fit, {fit.test_pairs} held out, "
        f"L2 {fit.l2:g} (cross-validated loss {fit.cv_loss:.4f}, chance {math.log(2):.4f})"
    )
    say(f"held-out accuracy {fit.test_accuracy:.4f}  95 % {low:.4f} … {high:.4f}")
    say(f"longer wins       {fit.length_accuracy:.4f}")
    say(f"training accuracy {fit.train_accuracy:.4f}")
    seeds = spread.accuracies
    say(
        f"{len(seeds)} other splits: mean {spread.mean:.4f}, range {min(seeds):.4f} … "
        f"{max(seeds):.4f}, longer wins {spread.length_mean:.4f}, "
        f"beaten in {spread.better_than_length}"
    )


# --- the command --------------------------------------------------------------------------------


def make_features(pairs: Sequence[Pair], folder: Path, cache: Path) -> Features:
    """Embeds every text once; pairs with a text over `MAX_TOKENS` are dropped."""
    keys = sorted({key for pair in pairs for key in pair.keys})
    found = embeddings(folder, keys, cache)
    row = {key: i for i, key in enumerate(keys) if int(found["tokens_N"][i]) <= MAX_TOKENS}
    kept = [pair for pair in pairs if all(key in row for key in pair.keys)]
    return Features(
        H_ND=found["H_ND"].double(),
        chars_N=torch.tensor([len(key.response) for key in keys]),
        winner_P=torch.tensor([row[pair.keys[0]] for pair in kept]),
        loser_P=torch.tensor([row[pair.keys[1]] for pair in kept]),
        prompts=tuple(pair.prompt for pair in kept),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    folder = os.environ.get("R2M_TEST_DATA")
    default = Path(folder) / DATA_FILE if folder else None
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="The first run embeds about 700 texts (minutes); later ones find them in --cache.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=default,
        help=f"the human pairs, gzipped JSON lines; else $R2M_TEST_DATA/{DATA_FILE}",
    )
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="model and embeddings are kept here"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files written")
    parser.add_argument("--seed", type=int, default=0, help="of the split into prompts")
    parser.add_argument(
        "--other-splits", type=int, default=10, help="further split seeds, for the spread"
    )
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, reports, writes; 1 with one sentence where that is not possible."""
    options = parse(arguments)
    if options.data is None or not options.data.is_file():
        where = options.data or f"(no --data, and R2M_TEST_DATA is not set: {DATA_FILE})"
        say(f"error: there is no file of human pairs: {where}")
        return 1
    torch.set_num_threads(options.threads)
    try:
        folder = ensure_smollm2(options.cache, say=say)
    except DemoModelError as error:
        say(f"error: {error}")
        return 1
    pairs, fate = load_pairs(options.data)
    features = make_features(pairs, folder, options.cache)
    fate["used"] = len(features.prompts)
    if len(pairs) > len(features.prompts):
        fate[f"over {MAX_TOKENS} tokens"] = len(pairs) - len(features.prompts)
    fit = fit_split(features, options.seed)
    seeds = range(options.seed + 1, options.seed + 1 + max(1, options.other_splits))
    others = [fit_split(features, seed) for seed in track(seeds, "Other splits", console=console)]
    spread = Spread(
        tuple(other.test_accuracy for other in others),
        tuple(other.length_accuracy for other in others),
    )
    report(fit, spread, fate, options.seed)
    metadata = provenance(fit, spread, folder, options.seed)
    page = head_page(fit, spread, fate, len(set(features.prompts)), options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "head.safetensors").write_bytes(head_bytes(fit, metadata))
    (options.out / "HEAD.md").write_text(page, encoding="utf-8")
    say(f"wrote head.safetensors and HEAD.md to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
