"""The audited gap: how far rewards run ahead of outside grades; and which labels do what.

gap = z(reward) − z(grade), both standardised by the run's first BASELINE judged labels. It runs
through a one-sided CUSUM (Page 1954), once for every WINDOW labels: S = max(0, S + gap − K).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Advice = Literal["ok", "warn", "stop"]

BASELINE = 128
"""Labels that the z-scores rest on. Their mean is off by a part of σ that no later label mends, and
that counts again in every window: fewer would cost false alarms."""
WINDOW = 16
"""Labels of one step of the CUSUM: a single gap is mostly noise."""
K, WARN, ALARM = 0.25, 3.0, 5.0


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations, updated one by one (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> Moments:
        """With one value more."""
        count = self.count + 1
        off = value - self.mean
        mean = self.mean + off / count
        return Moments(count, mean, self.squares + off * (value - mean))

    @property
    def deviation(self) -> float:
        """Standard deviation (1/n)."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(frozen=True, slots=True)
class AuditState:
    """Where the audited gap stands. Immutable; JSON through `to_dict`.

    Attributes:
        judged: labels so far.
        reward, grade: of the baseline.
        window: labels of the window at hand; `total`: the sum of their gaps.
        gap: mean of the last whole window.
        cusum: S.
        stopped: an alarm stays until somebody lifts it.
    """

    judged: int = 0
    reward: Moments = field(default_factory=Moments)
    grade: Moments = field(default_factory=Moments)
    window: int = 0
    total: float = 0.0
    gap: float | None = None
    cusum: float = 0.0
    stopped: bool = False

    def add(self, reward: float, grade: float) -> AuditState:
        """With one judged label more.

        Raises:
            ValueError: not finite.
        """
        if not (math.isfinite(reward) and math.isfinite(grade)):
            raise ValueError("a reward and a grade are finite numbers")
        judged = self.judged + 1
        if self.judged < BASELINE:
            return replace(
                self,
                judged=judged,
                reward=self.reward.add(reward),
                grade=self.grade.add(grade),
            )
        if self.flat:
            return replace(self, judged=judged)
        gap = (reward - self.reward.mean) / self.reward.deviation
        gap -= (grade - self.grade.mean) / self.grade.deviation
        window, total = self.window + 1, self.total + gap
        if window < WINDOW:
            return replace(self, judged=judged, window=window, total=total)
        mean = total / window
        cusum = max(0.0, self.cusum + mean - K)
        return replace(
            self,
            judged=judged,
            window=0,
            total=0.0,
            gap=mean,
            cusum=cusum,
            stopped=self.stopped or cusum >= ALARM,
        )

    @property
    def flat(self) -> bool:
        """Whether the baseline has no spread to standardise by."""
        return self.judged >= BASELINE and min(self.reward.deviation, self.grade.deviation) <= 0

    @property
    def advice(self) -> Advice:
        """`stop` stays until `reset`."""
        if self.stopped:
            return "stop"
        return "warn" if self.cusum >= WARN else "ok"

    @property
    def note(self) -> str:
        """What a person should know of the number, or nothing."""
        if self.judged < BASELINE:
            return f"{self.judged} of {BASELINE} labels that the gap is measured from"
        if self.flat:
            return "the first labels' rewards or grades are all equal: there is no gap to measure"
        return ""

    def reset(self) -> AuditState:
        """The alarm lifted and the sum begun anew; the baseline stays."""
        return replace(self, window=0, total=0.0, cusum=0.0, stopped=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> AuditState:
        """What `to_dict` gave; of nothing, the state before the first label."""
        known = {one.name: values[one.name] for one in fields(AuditState) if one.name in values}
        for name in ("reward", "grade"):
            if name in known:
                known[name] = Moments(**known[name])
        return AuditState(**known)


def marked_for_audit(seed: int, unit: str, rate: float) -> bool:
    """Whether a unit (a group, or a sample of none) is marked: the same answer for good."""
    return _share("audit", seed, unit) < rate


def use_of(seed: int, unit: str, judge_share: float) -> Literal["train", "judge"]:
    """Whether labels of a prompt train or judge: the same answer for good."""
    return "judge" if _share("use", seed, unit) < judge_share else "train"


def _share(purpose: str, seed: int, unit: str) -> float:
    """A number in [0, 1) that only the three decide."""
    text = f"{purpose}\x00{seed}\x00{unit}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2.0**56
