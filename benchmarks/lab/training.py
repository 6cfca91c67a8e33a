"""The lab's starting point: a policy that imitates people, and an imperfect reward model.

Both are made from a seed and kept, since every arm of that seed starts from the very same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from lab import world
from lab.models import Decoder, RewardModel

PRETRAINING_STEPS, PRETRAINING_BATCH = 600, 64
PROXY_EPOCHS, PROXY_BATCH = 3, 100

Kind = Literal["usual", "weak", "good"]
_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a reward model is made.

    Attributes:
        pretraining: steps of its backbone.
        pairs: that it learns from.
        flipped: share of them with the wrong label.
    """

    pretraining: int = PRETRAINING_STEPS
    pairs: int = 4_000
    flipped: float = 0.15


RECIPES: dict[Kind, Recipe] = {
    "usual": Recipe(),
    # Its backbone knows little of the language: where the policy's states could tell it more.
    "weak": Recipe(pretraining=60),
    # The healthy one: it is right so often that optimising it is optimising the gold.
    "good": Recipe(pairs=20_000, flipped=0.0),
}


@dataclass(frozen=True, slots=True)
class Start:
    """What every arm of a seed begins with.

    Attributes:
        policy: pretrained, not yet moved.
        proxy: the reward model; frozen, except in the arm that retrains it.
        accuracy: of the proxy on pairs of fresh human responses, in the gold's eyes.
        mean, spread: of the proxy's rewards on the policy's own responses.
        gold_mean, gold_spread: of the gold on the same.
    """

    policy: Decoder
    proxy: RewardModel
    accuracy: float
    mean: float
    spread: float
    gold_mean: float
    gold_spread: float

    @property
    def bias(self) -> float:
        """Of the proxy's scoring head, which ω does not scale."""
        return float(self.proxy.score.bias)


def pretrain(model: Decoder, draw: torch.Generator, steps: int) -> None:
    """Next-token prediction on what people wrote."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        tokens_NS = world.human_responses(PRETRAINING_BATCH, draw)
        written = (tokens_NS[:, world.PROMPT :] != world.PAD).sum()
        loss = -model.log_probabilities(tokens_NS).sum() / written
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def train_proxy(model: RewardModel, draw: torch.Generator, pairs: int, flipped: float) -> None:
    """Bradley-Terry on pairs of human responses to one query, some with the label flipped."""
    better_NS, worse_NS = labelled_pairs(pairs, draw)
    flip_N = torch.rand(pairs, generator=draw) < flipped
    winner_NS = torch.where(flip_N[:, None], worse_NS, better_NS)
    loser_NS = torch.where(flip_N[:, None], better_NS, worse_NS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    for _ in range(PROXY_EPOCHS):
        for chosen_N in torch.randperm(pairs, generator=draw).split(PROXY_BATCH):
            loss = preference_loss(model, winner_NS[chosen_N], loser_NS[chosen_N])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def preference_loss(model: RewardModel, winner_NS: Tensor, loser_NS: Tensor) -> Tensor:
    """−log σ(r_w − r_l), mean over pairs."""
    both_NS = torch.cat([winner_NS, loser_NS])
    winner_N, loser_N = model(both_NS, world.lengths(both_NS)).chunk(2)
    return -F.logsigmoid(winner_N - loser_N).mean()


def labelled_pairs(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two human responses to one query, the better in the gold's eyes first; no ties."""
    better: list[Tensor] = []
    worse: list[Tensor] = []
    found = 0
    while found < count:
        one_NS = world.human_responses(count, draw)
        order = one_NS[:, 1].argsort(stable=True)
        one_NS = one_NS[order]
        two_NS = one_NS.roll(1, 0)
        same = one_NS[:, 1] == two_NS[:, 1]
        ahead_N = world.gold(one_NS) - world.gold(two_NS)
        keep_N = same & (ahead_N != 0)
        swap_N = (ahead_N < 0)[:, None]
        better.append(torch.where(swap_N, two_NS, one_NS)[keep_N])
        worse.append(torch.where(swap_N, one_NS, two_NS)[keep_N])
        found += int(keep_N.sum())
    order = torch.randperm(found, generator=draw)[:count]
    return torch.cat(better)[order], torch.cat(worse)[order]


@torch.no_grad()
def pair_accuracy(model: RewardModel, draw: torch.Generator, pairs: int = 2_000) -> float:
    """Share of held-out pairs that the reward model orders as the gold does."""
    better_NS, worse_NS = labelled_pairs(pairs, draw)
    better_N = model(better_NS, world.lengths(better_NS))
    worse_N = model(worse_NS, world.lengths(worse_NS))
    return float((better_N > worse_N).float().mean())


def make_policy(seed: int, *, steps: int = PRETRAINING_STEPS) -> Decoder:
    """A policy that imitates people: about 10 s."""
    torch.manual_seed(seed)
    policy = Decoder()
    pretrain(policy, torch.Generator().manual_seed(seed), steps)
    return policy


def make_proxy(seed: int, recipe: Recipe) -> RewardModel:
    """A reward model with a backbone of its own: about 15 s."""
    torch.manual_seed(10_007 + seed)
    proxy, draw = RewardModel(), torch.Generator().manual_seed(10_007 + seed)
    pretrain(proxy.backbone, draw, recipe.pretraining)
    train_proxy(proxy, draw, recipe.pairs, recipe.flipped)
    return proxy


def begin(policy: Decoder, proxy: RewardModel, seed: int) -> Start:
    """The two as they stand at step 0, with the numbers that rewards are standardised by."""
    draw = torch.Generator().manual_seed(20_011 + seed)
    tokens_NS = policy.sample(world.queries(1_000, draw), draw)
    with torch.no_grad():
        r_N = proxy(tokens_NS, world.lengths(tokens_NS))
    gold_N = world.gold(tokens_NS)
    return Start(
        policy.eval(),
        proxy.eval(),
        pair_accuracy(proxy, draw),
        float(r_N.mean()),
        float(r_N.std()),
        float(gold_N.mean()),
        float(gold_N.std()),
    )


def start_of(seed: int, kind: Kind, folder: Path) -> Start:
    """The start of a seed, made where the folder does not have it yet."""
    policy_file, proxy_file = folder / f"policy-{seed}", folder / f"proxy-{kind}-{seed}"
    policy = _kept(policy_file, Decoder, lambda: make_policy(seed))
    proxy = _kept(proxy_file, RewardModel, lambda: make_proxy(seed, RECIPES[kind]))
    return begin(policy, proxy, seed)


def _kept(path: Path, shape: type[_Model], make: Callable[[], _Model]) -> _Model:
    path = path.with_suffix(".safetensors")
    if path.exists():
        model = shape()
        load_model(model, path)
        return model
    model = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may make the same; each writes its own file, and the last rename stays.
    scratch = path.with_suffix(f".{os.getpid()}")
    save_model(model, str(scratch))
    scratch.replace(path)
    return model
