"""The method settings of a fake's runs.

The service has the true ones (domain/method.py), which this package must not import; a test
compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The classes are ordered as the server's: a run_exists error names the first key that differs.


@dataclass(frozen=True, slots=True, kw_only=True)
class Omega:
    """The schedule of ω."""

    kind: str
    value: float | None = None
    total_steps: int | None = None
    steps: int | None = None
    floor: float | None = None

    def at(self, t: int) -> float:
        """ω(t), t = 1, 2, ..."""
        if self.kind == "constant":
            return self.value or 0.0
        floor = self.floor or 0.0
        if self.kind == "cosine":
            phase = min(t / (self.total_steps or 1), 1.0)
            return max(0.5 * math.cos(math.pi * phase) + 0.5, floor)
        return max(1.0 - (1.0 - floor) * t / (self.steps or 1), floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the server's gate would ask for; here it only shapes the answer."""

    spread_min: float | None = 0.5
    spread_max: float | None = 2.0
    rank_correlation_min: float | None = 0.8
    anchors_every: int | None = 10
    anchors_margin: float = 0.02
    anchors_alpha: float = 0.05
    anchors_looks: int = 20
    undecided: str = "hold"
    freeze_after: int | None = 5
    reference: str = "fixed"

    @property
    def checks_drift(self) -> bool:
        """Whether anything beyond finiteness is asked for."""
        return (self.spread_min, self.spread_max, self.rank_correlation_min) != (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """All settings, resolved."""

    profile: str
    width: int
    alpha: float
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    omega: Omega
    kl_weight: float
    labels: str
    gate: Gate
    replay_groups: int
    audit_rate: float
    judge_share: float
    freeze_on_alarm: bool
    seed: int
    controls: list[str]
