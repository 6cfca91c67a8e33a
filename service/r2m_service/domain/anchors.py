"""The gate's last step: what held-out gold pairs say of a candidate.

The candidate must be non-inferior to the pinned reference and to live: the one-sided lower bound
of the difference of paired accuracies (Tango's score interval, Statistics in Medicine 17, 1998)
lies above −margin. "Not significantly worse" would fail open: with 200 pairs a head that loses a
point a step passes for six steps. Too few pairs give `undecided`, never `accepted`.

Repeated looks: the same pairs judge again and again, and every look is another chance to pass. The
chance that any look of the whole run accepts a candidate that is worse by more than the margin is
kept below alpha by the union bound: the planned looks share half of it, the next twice as many a
quarter, the next four times as many an eighth, and so on (`level`).

Not controlled: how well the pairs stand for what the policy writes now, and their labels' errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from r2m.statistics import paired_bounds, wilson


@dataclass(frozen=True, slots=True)
class Paired:
    """A candidate against another head on the same pairs.

    Attributes:
        pairs: how many.
        better, worse: pairs that the candidate alone has right, and that the other alone has; a
            tie (equal rewards) against right or wrong counts half.
        low, high: one-sided bounds of the difference of accuracies, each at the look's level.
        accuracy: of the other head; ties count half.
    """

    pairs: int
    better: float
    worse: float
    low: float
    high: float
    accuracy: float

    @property
    def difference(self) -> float:
        """Accuracy of the candidate less that of the other head."""
        return (self.better - self.worse) / self.pairs if self.pairs else 0.0


@dataclass(frozen=True, slots=True)
class AnchorVerdict:
    """What a look at the anchors says.

    Attributes:
        superior: proved better than the reference.
        live_harmed: live itself is proved worse than the reference: steps between looks did that.
        wilson: 95 % interval of the candidate's accuracy.
    """

    verdict: Literal["accepted", "rejected", "undecided"]
    reason: str
    pairs: int
    accuracy: float
    wilson: tuple[float, float]
    reference: Paired
    live: Paired
    superior: bool
    live_harmed: bool


def level(alpha: float, looks: int, look: int) -> float:
    """A look's own share of alpha; the shares of all looks, however many, add up to it at most.

    Args:
        alpha: for the whole run.
        looks: planned.
        look: 1, 2, 3, …
    """
    block, last = 0, looks
    while look > last:
        block += 1
        last += looks * 2**block
    return alpha / (2.0 ** (block + 1)) / (looks * 2**block)


def judge_anchors(
    candidate: Sequence[float],
    reference: Sequence[float],
    live: Sequence[float],
    *,
    margin: float,
    alpha: float,
    looks: int,
    look: int,
) -> AnchorVerdict:
    """Accept what is proved non-inferior to both; of the rest, reject what is proved worse.

    Worse at all, not worse by the margin: with no proof that the loss is small, evidence of a loss
    is reason enough. A candidate that is equal is rejected at the look's level only.

    Args:
        candidate, reference, live: margins by pair, of the chosen's reward over the rejected's,
            by each head.
        margin: of accuracy, as a share.
        alpha, looks, look: as in `level`.

    Raises:
        ValueError: the heads were not judged on the same pairs, or a margin is no number.
    """
    if not all(math.isfinite(one) for one in (*candidate, *reference, *live)):
        raise ValueError("a margin that is no number judges nothing")
    z = NormalDist().inv_cdf(1 - level(alpha, looks, look))
    n = len(candidate)
    right = sum(_right(one) for one in candidate)
    against = {"reference": _paired(candidate, reference, z), "live": _paired(candidate, live, z)}
    served = _paired(live, reference, z)
    worse = next((name for name, one in against.items() if one.high < 0), None)
    short = next((name for name, one in against.items() if one.low <= -margin), None)
    verdict: Literal["accepted", "rejected", "undecided"]
    if n == 0:
        verdict, reason = "undecided", "no anchor pair could be judged"
    elif short is None:
        verdict, reason = "accepted", "the anchors prove it non-inferior"
    elif worse is not None:
        verdict, reason = "rejected", f"the anchors prove it worse than {worse}"
    else:
        verdict = "undecided"
        reason = f"the anchors do not prove it at most {100 * margin:g} points worse than {short}"
    numbers = ", ".join(
        f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}] to {name}"
        for name, one in against.items()
    )
    return AnchorVerdict(
        verdict=verdict,
        reason=f"{reason} ({numbers}; {n} {'pair' if n == 1 else 'pairs'}, look {look})",
        pairs=n,
        accuracy=right / n if n else 0.0,
        wilson=wilson(right, n),
        reference=against["reference"],
        live=against["live"],
        superior=n > 0 and against["reference"].low > 0,
        live_harmed=served.low <= -margin and served.high < 0,
    )


def _paired(ours: Sequence[float], theirs: Sequence[float], z: float) -> Paired:
    differences = [_right(a) - _right(b) for a, b in zip(ours, theirs, strict=True)]
    better = sum(one for one in differences if one > 0)
    worse = -sum(one for one in differences if one < 0)
    n = len(differences)
    low, high = paired_bounds(n, better, worse, z)
    accuracy = sum(_right(one) for one in theirs) / n if n else 0.0
    return Paired(n, better, worse, low, high, accuracy)


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
