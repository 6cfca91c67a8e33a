"""Running numbers of one run, in this process."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

WINDOW = 1024
"""Samples that a moving mean looks back on: a few steps of an ordinary run."""


@dataclass(slots=True)
class MovingPair:
    """Exponentially weighted mean, deviation and correlation of two series that come together.

    The first `WINDOW` pairs weigh the same, so it starts without bias; from then on a pair weighs
    1/WINDOW.
    """

    count: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    _var_x: float = 0.0
    _var_y: float = 0.0
    _cov: float = 0.0

    def add(self, x: float, y: float) -> None:
        """One pair more; both finite."""
        self.count += 1
        weight = max(1.0 / self.count, 1.0 / WINDOW)
        off_x, off_y = x - self.mean_x, y - self.mean_y
        self.mean_x += weight * off_x
        self.mean_y += weight * off_y
        rest = 1.0 - weight
        self._var_x = rest * (self._var_x + weight * off_x * off_x)
        self._var_y = rest * (self._var_y + weight * off_y * off_y)
        self._cov = rest * (self._cov + weight * off_x * off_y)

    @property
    def deviation_x(self) -> float:
        """Standard deviation of the first series (1/n)."""
        return math.sqrt(self._var_x)

    @property
    def deviation_y(self) -> float:
        """Standard deviation of the second series (1/n)."""
        return math.sqrt(self._var_y)

    @property
    def correlation(self) -> float | None:
        """Pearson's; None where one of the two does not vary."""
        product = self.deviation_x * self.deviation_y
        return None if product <= 0.0 else max(-1.0, min(1.0, self._cov / product))


@dataclass(slots=True)
class Tally:
    """What a run has used and what came of it.

    Attributes:
        samples: scored, with those that failed; `failed`: those without a reward.
        device_seconds: its share of the device's time.
        aligns: computed ones; `verdicts`: answered steps by verdict, a retry not counted.
        labels: outside labels that were taken, by use.
        rewards: the head's and the frozen model's.
        used_at: when it was last used, on the process's monotonic clock; None: never.
    """

    samples: int = 0
    failed: int = 0
    tokens: int = 0
    feedback_bytes: int = 0
    device_seconds: float = 0.0
    aligns: int = 0
    verdicts: Counter[str] = field(default_factory=Counter[str])
    labels: Counter[str] = field(default_factory=Counter[str])
    rewards: MovingPair = field(default_factory=MovingPair)
    used_at: float | None = None

    def copy(self) -> Tally:
        """As it stands now."""
        return replace(
            self,
            verdicts=Counter(self.verdicts),
            labels=Counter(self.labels),
            rewards=replace(self.rewards),
        )
