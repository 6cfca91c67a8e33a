"""One split: fit a reward model, align it in every way, ask it about prompts it never saw."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.arms import Arm
from lab.learner import Group as Lesson
from lab.learner import Learner, States, method_of
from lab.real.arms import GROUPS_A_STEP, STEPS
from lab.real.data import Group, Pair, Split, Text
from lab.real.embed import Embedded
from r2m.statistics import Groups, centred, rms, spearman

L2 = 0.01
"""Of the head's fit; chosen once on other splits' fits, not on what is measured here."""

Found = Mapping[Text, Embedded]
Rewards = Callable[[Sequence[Text]], Tensor]


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one arm on one split.

    Attributes:
        held_out: pair accuracy on prompts of the same data that nothing was learnt from.
        people: the same on PandaLM's pairs.
        spread_ratio, rank_correlation: to version 0, on the held-out groups.
        accepted: aligns of `STEPS`.
    """

    held_out: float
    people: float
    spread_ratio: float = 1.0
    rank_correlation: float = 1.0
    accepted: int = 0


class Study:
    """All arms of one split.

    Args:
        found: every text's embedding and states.
        seed: of the split, the labels and the batches.
    """

    def __init__(
        self, groups: Sequence[Group], pairs: Sequence[Pair], found: Found, split: Split, seed: int
    ) -> None:
        self._groups, self._pairs, self._found = groups, pairs, found
        self._split, self._seed = split, seed
        self.steps, self.groups_a_step = STEPS, GROUPS_A_STEP
        every = sorted(found, key=str)
        half = len(every) // 2
        # Another prompt's text, always the same one for a text.
        self._stranger = dict(zip(every, [*every[half:], *every[:half]], strict=True))
        self._weight_R = fit(self._differences(split.fit))

    def vanilla(self) -> Measured:
        """The reward model as it was fitted."""
        return self._measured(lambda texts: self._rte(texts) @ self._weight_R)

    def run(self, arm: Arm) -> Measured:
        """The arm after its aligns."""
        labelled = self._labelled(arm.labelled)
        if arm.reward == "retrained":
            more = torch.cat([self._differences(self._split.fit), self._best_worst(labelled)])
            weight_R = fit(more)
            return self._measured(lambda texts: self._rte(texts) @ weight_R)
        attends = arm.attended != "none"
        given = {**arm.method, "seed": self._seed}
        if not attends:
            given.pop("omega", None)
        width = len(self._weight_R)
        learner = Learner(
            method_of(given, state_width=width, attends=attends),
            weight_R=self._weight_R,
            bias=None,
            width_P=width,
            attends=attends,
        )
        draw = random.Random(self._seed)
        accepted = 0
        for _ in range(self.steps):
            batch = draw.sample(list(self._split.align), self.groups_a_step)
            lesson = [self._lesson(arm, place, place in labelled) for place in batch]
            accepted += learner.align(lesson).verdict == "accepted"
        return self._measured(
            lambda texts: learner.score(self._rte(texts), self._states(arm, texts)),
            lambda texts: learner.omega * learner.vanilla(self._rte(texts)),
            accepted,
        )

    def _labelled(self, share: float) -> frozenset[int]:
        """The groups whose label is known: more of them hold those of fewer."""
        order = list(self._split.align)
        random.Random(self._seed + 1).shuffle(order)
        return frozenset(order[: round(share * len(order))])

    def _lesson(self, arm: Arm, place: int, labelled: bool) -> Lesson:
        group = self._groups[place]
        preferred = (_argmax(group.gold), _argmin(group.gold)) if labelled else None
        return Lesson(self._rte(group.texts), self._states(arm, group.texts), preferred)

    def _states(self, arm: Arm, texts: Sequence[Text]) -> States | None:
        if arm.attended == "none":
            return None
        if arm.attended == "backbone":
            return [self._found[one].own_SR for one in texts]
        if arm.attended == "shuffled":
            return [self._found[self._stranger[one]].policy_SP for one in texts]
        states = [self._found[one].policy_SP for one in texts]
        if arm.attended == "noise":
            return [_noise(h_SP, one) for h_SP, one in zip(states, texts, strict=True)]
        return states

    def _rte(self, texts: Sequence[Text]) -> Tensor:
        return torch.stack([self._found[one].rte_R for one in texts])

    def _differences(self, places: Sequence[int]) -> Tensor:
        """H(better) − H(worse) of every pair whose gold differs."""
        rows: list[Tensor] = []
        for place in places:
            rte_KR, gold = self._rte(self._groups[place].texts), self._groups[place].gold
            rows += [rte_KR[a] - rte_KR[b] for a, b in _ordered(gold)]
        return torch.stack(rows)

    def _best_worst(self, places: frozenset[int]) -> Tensor:
        rows: list[Tensor] = []
        for place in sorted(places):
            group = self._groups[place]
            rte_KR = self._rte(group.texts)
            rows.append(rte_KR[_argmax(group.gold)] - rte_KR[_argmin(group.gold)])
        return torch.stack(rows)

    def _measured(self, reward: Rewards, before: Rewards | None = None, t: int = 0) -> Measured:
        groups = [self._groups[place] for place in self._split.held_out]
        ours: Groups = [reward(one.texts).tolist() for one in groups]
        right = [
            _right(r[a], r[b])
            for r, group in zip(ours, groups, strict=True)
            for a, b in _ordered(group.gold)
        ]
        people = [_right(*reward([one.better, one.worse]).tolist()) for one in self._pairs]
        ratio = rho = 1.0
        if before is not None:
            theirs = centred([before(one.texts).tolist() for one in groups])
            ratio = rms(centred(ours)) / rms(theirs)
            rho = spearman(centred(ours), theirs) or 0.0
        return Measured(_mean(right), _mean(people), ratio, rho, t)


def fit(differences_NR: Tensor) -> Tensor:
    """w of Bradley-Terry with a quadratic penalty, in units of the differences' spread."""
    scale_R = differences_NR.std(0).clamp_min(1e-6)
    x_NR = (differences_NR / scale_R).double()
    w_R = torch.zeros(x_NR.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w_R], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = -F.logsigmoid(x_NR @ w_R).mean() + L2 * w_R.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return (w_R.detach().float() / scale_R).contiguous()


def _ordered(gold: Sequence[float]) -> list[tuple[int, int]]:
    """Places of (better, worse), of all pairs that differ."""
    places = range(len(gold))
    return [(a, b) for a in places for b in places if gold[a] > gold[b]]


def _right(better: float, worse: float) -> float:
    return 1.0 if better > worse else 0.5 * (better == worse)


def _noise(h_SP: Tensor, text: Text) -> Tensor:
    draw = torch.Generator().manual_seed(len(text.prompt) * 10_007 + len(text.response))
    return torch.randn(h_SP.shape, generator=draw) * h_SP.std()


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _argmin(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
