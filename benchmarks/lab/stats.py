"""What may be said of a few seeds: paired differences with Student's intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

FEWEST = 5
"""Seeds below which no interval is printed: with four, Student's t already stands at 3.2."""


class TooFewError(ValueError):
    """Nothing can be said of so few."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds.

    Attributes:
        half: half the 95 % interval.
        positive: how many of `count` are above zero.
    """

    mean: float
    half: float
    count: int
    positive: int

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.mean + self.half

    @property
    def says(self) -> str:
        """`better`, `worse`, or `open` where the interval holds zero."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "open"

    def shown(self, digits: int = 2) -> str:
        """As a table's cell."""
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and 95 % interval (Student's t).

    Raises:
        TooFewError: fewer than `FEWEST` values.
        ValueError: one of them is not finite.
    """
    if len(values) < FEWEST:
        raise TooFewError(f"{len(values)} seeds say nothing: at least {FEWEST} are needed")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is not finite")
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Mean(
        mean, half_of(math.sqrt(variance), count), count, sum(value > 0 for value in values)
    )


def half_of(deviation: float, count: int) -> float:
    """Half a 95 % interval of a mean of `count` values with that standard deviation (1/(n − 1))."""
    return float(student.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    """Mean of ours − theirs, seed by seed.

    Raises:
        TooFewError: as `mean_of`.
        ValueError: not one of each a seed.
    """
    return mean_of([a - b for a, b in zip(ours, theirs, strict=True)])
