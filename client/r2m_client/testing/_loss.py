"""The objective's value on the test's rewards (docs/algorithm.md, "The update")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Rewards:
    """One group's rewards, by several heads.

    Attributes:
        trained: by the head in training.
        reference, origin: by the reference, and by version 0.
        preferred: places of somebody else's winner and loser.
        lengths: tokens of the texts.
    """

    trained: list[float]
    reference: list[float]
    preferred: tuple[int, int] | None
    origin: list[float]
    vanilla: list[float]
    lengths: list[int]

    @property
    def pseudo_label(self) -> tuple[int, int]:
        """Places of the best and the worst reward."""
        return self.trained.index(max(self.trained)), self.trained.index(min(self.trained))

    @property
    def has_label(self) -> bool:
        """False where all rewards are equal and nobody else says which is better."""
        return self.preferred is not None or sigma(self.trained) > FLOOR

    @property
    def disagrees(self) -> bool:
        """Whether somebody else's label is not what the rewards say."""
        if self.preferred is None:
            return False
        winner, loser = self.preferred
        return self.trained[winner] <= self.trained[loser]

    @property
    def has_gre(self) -> bool:
        """GRE is for pseudo labels, and constant at two samples."""
        return self.preferred is None and len(self.trained) > 2


def sigma(values: Sequence[float]) -> float:
    """The standard deviation with 1/K."""
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / len(values))


def losses(groups: Sequence[Rewards], *, alpha: float, kl_weight: float) -> dict[str, float]:
    """Means over the groups that have the term; what no group has is left out."""
    bts, gres, kls, totals = list[float](), list[float](), list[float](), list[float]()
    for group in groups:
        r = group.trained
        winner, loser = group.preferred or group.pseudo_label
        bts.append(_softplus(r[loser] - r[winner]))
        total = bts[-1]
        if group.has_gre:
            scale = max(sigma(r), FLOOR)
            logs = _log_softmax([value / scale for value in r])
            gres.append(-math.fsum(math.exp(one) * one for one in logs))
            total = (1.0 - alpha) * total + alpha * gres[-1]
        tau = sigma(group.reference)
        if kl_weight > 0 and tau > FLOOR:
            ours = _log_softmax([value / tau for value in r])
            theirs = _log_softmax([value / tau for value in group.reference])
            pairs = zip(ours, theirs, strict=True)
            kls.append(math.fsum(math.exp(b) * (b - a) for a, b in pairs))
            total += kl_weight * kls[-1]
        totals.append(total)
    terms = (("bt", bts), ("gre", gres), ("kl", kls), ("total", totals))
    return {name: math.fsum(values) / len(values) for name, values in terms if values}


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    log_sum = top + math.log(math.fsum(math.exp(value - top) for value in values))
    return [value - log_sum for value in values]
