"""Live evidence beside the gate: numbers that inform and never decide (docs/algorithm.md).

All but the means are within groups: what is common to a group never reaches an advantage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from r2m.statistics import Groups, centred, rms, spearman
from r2m_service.domain.gate import SPREAD_FLOOR

Pairs = Sequence[tuple[Sequence[float], int, int]]
"""Rewards of a group, and the places of its winner and its loser."""


def mean_of(rewards: Groups) -> float | None:
    """Mean over all samples; None where there is none."""
    found = [one for group in rewards for one in group]
    return math.fsum(found) / len(found) if found else None


def length_correlation(rewards: Groups, tokens: Sequence[Sequence[int]]) -> float | None:
    """Mean over groups of Spearman's correlation of reward and length; None where none has one."""
    found = [
        rho
        for ours, lengths in zip(rewards, tokens, strict=True)
        if (rho := spearman(ours, lengths)) is not None
    ]
    return math.fsum(found) / len(found) if found else None


def agreement(pairs: Pairs) -> float | None:
    """Share of the pairs whose winner has the higher reward; ties count half."""
    if not pairs:
        return None
    right = [
        1.0 if rewards[winner] > rewards[loser] else 0.5 * (rewards[winner] == rewards[loser])
        for rewards, winner, loser in pairs
    ]
    return math.fsum(right) / len(right)


def pseudo_label(rewards: Sequence[float]) -> tuple[int, int]:
    """Places of the highest and the lowest reward, as the loss takes them."""
    places = range(len(rewards))
    return max(places, key=rewards.__getitem__), min(places, key=rewards.__getitem__)


def feedback_gain(own: Groups, other: Groups) -> float | None:
    """Mean |r(h) − r(another sample's h)| over the spread of r(h): 0 where h does not matter.

    Args:
        other: the same samples' rewards with other states; an empty group was not measured.
    """
    measured = [(a, b) for a, b in zip(own, other, strict=True) if len(b) == len(a)]
    moved = [abs(x - y) for a, b in measured for x, y in zip(a, b, strict=True)]
    spread = rms(centred([a for a, _ in measured]))
    if not moved or spread <= SPREAD_FLOOR:
        return None
    return math.fsum(moved) / len(moved) / spread
