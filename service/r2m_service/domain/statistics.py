"""Intervals and tests for accuracies, in closed form."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


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
