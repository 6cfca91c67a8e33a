"""Statistics that the service answers with and its fake computes alike; all in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

Groups = Sequence[Sequence[float]]
Z95 = 1.959963984540054
_HALVINGS = 60


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion; (0, 1) without trials.

    Args:
        successes: may count halves (ties).
    """
    if trials == 0:
        return 0.0, 1.0
    p, n, z2 = successes / trials, trials, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p-value that better and worse are equally likely (McNemar's exact test)."""
    n, k = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    # Sums of logarithms: the coefficients of thousands of pairs overflow a float.
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    )
    return min(1.0, 2.0 * math.fsum(math.exp(one) for one in logs))


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Rank correlation with ties at their mean rank; None where a side has no spread."""
    if len(ours) < 2:
        return None
    a, b = centred([_ranks(ours)]), centred([_ranks(theirs)])
    norm = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    if norm == 0:
        return None
    return max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)) / norm))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in range(start, end + 1):
            ranks[order[place]] = (start + end) / 2
        start = end + 1
    return ranks


def centred(groups: Groups) -> list[float]:
    """Rewards less their group's mean, of all groups."""
    found: list[float] = []
    for rewards in groups:
        mean = math.fsum(rewards) / len(rewards) if rewards else 0.0
        found.extend(reward - mean for reward in rewards)
    return found


def rms(values: Sequence[float]) -> float:
    """Root of the mean square; 0 of nothing."""
    return math.sqrt(math.fsum(v * v for v in values) / len(values)) if values else 0.0


def paired_bounds(pairs: int, better: float, worse: float, z: float) -> tuple[float, float]:
    """Tango's score bounds of (better − worse) / pairs (Statistics in Medicine 17, 1998).

    Right also where no pair differs: (−z²/(n + z²), z²/(n + z²)) then, never a point.

    Args:
        z: the normal quantile of one side.
    """
    if pairs == 0:
        return -1.0, 1.0
    return -_upper(pairs, worse, better, z), _upper(pairs, better, worse, z)


def _upper(n: int, b: float, c: float, z: float) -> float:
    """The largest difference that the score test does not refuse."""
    low, high = (b - c) / n, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if -_score(n, b, c, middle) > z:
            high = middle
        else:
            low = middle
    return high


def _score(n: int, b: float, c: float, delta: float) -> float:
    """Tango's score statistic of the hypothesis that the difference is delta."""
    # The constrained maximum likelihood estimate of the probability that only the other is right.
    first = -b - c + (2 * n - b + c) * delta
    second = -c * delta * (1 - delta)
    q = (math.sqrt(max(0.0, first * first - 8 * n * second)) - first) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    difference = b - c - n * delta
    if variance <= 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / math.sqrt(variance)
