"""The gate: whether a candidate may become live, and the numbers behind the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from r2m.statistics import Groups, centred, rms, spearman
from r2m_service.domain.anchors import AnchorVerdict
from r2m_service.domain.method import Gate

Verdict = Literal["accepted", "rejected", "undecided", "skipped", "frozen"]

SPREAD_FLOOR = 1e-6
"""Below this a reference's differences are rounding noise, as in the loss."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A candidate's rewards beside the reference's, on the same samples at the same ω.

    Attributes:
        spread_ratio: candidate's within-group standard deviation over the reference's; None where
            the reference sees no difference.
        rank_correlation: Spearman's, of rewards less their group's mean; None where a side is flat.
        samples: how many it rests on.
    """

    spread_ratio: float | None
    rank_correlation: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its reason, in words for a person.

    Attributes:
        moves: whether live becomes the candidate.
    """

    verdict: Verdict
    reason: str
    moves: bool = False


def measure_drift(candidate: Groups, reference: Groups) -> Drift:
    """Compare rewards by group: what is common to a group never reaches an advantage."""
    ours, theirs = centred(candidate), centred(reference)
    assert len(ours) == len(theirs)
    spread = rms(theirs)
    return Drift(
        spread_ratio=rms(ours) / spread if spread > SPREAD_FLOOR else None,
        rank_correlation=spearman(ours, theirs),
        samples=len(ours),
    )


def decide(
    gate: Gate,
    *,
    finite: bool,
    drift: Drift | None,
    asked: int = 0,
    anchors: AnchorVerdict | None = None,
    due: bool = False,
) -> Decision:
    """Finite first, then drift, then anchors; evidence that is missing never counts as passed.

    Args:
        gate: the run's.
        finite: whether loss, gradient, weights and rewards of the candidate are.
        drift: None where the gate asks for none.
        asked: samples that drift should rest on. Of states that stay with the trainer some may be
            missing; with less than half of them it is no evidence.
        anchors: what they said; None where they were not asked.
        due: whether they had to be.
    """
    if not finite:
        return Decision("rejected", "the loss, the gradient or the candidate is not finite")
    passed = "finite"
    if gate.checks_drift:
        if drift is not None and 2 * drift.samples < asked:
            return Decision(
                "undecided",
                f"drift could be measured on {drift.samples} of {asked} samples, half are needed",
            )
        judged = _by_drift(gate, drift)
        if judged.verdict != "accepted":
            return judged
        passed = judged.reason
    if anchors is not None:
        undecided = anchors.verdict == "undecided" and anchors.pairs > 0
        moves = anchors.verdict == "accepted" or (undecided and gate.undecided == "move")
        return Decision(anchors.verdict, f"{passed}; {anchors.reason}", moves)
    if due:
        return Decision(
            "undecided",
            f"{passed}; the anchors are due at this step, and none of them could be judged: send "
            "their hidden states by the current policy along",
        )
    return Decision("accepted", passed, moves=True)


def _by_drift(gate: Gate, drift: Drift | None) -> Decision:
    if drift is None or drift.samples == 0:
        return Decision("undecided", "no sample to measure drift on")
    ratio, rho = _number(drift.spread_ratio), _number(drift.rank_correlation)
    if gate.spread_min is not None or gate.spread_max is not None:
        if ratio is None:
            return Decision("undecided", "the reference's rewards are equal in every group")
        if gate.spread_min is not None and ratio < gate.spread_min:
            return Decision("rejected", f"spread ratio {ratio:.3g} is below {gate.spread_min:g}")
        if gate.spread_max is not None and ratio > gate.spread_max:
            return Decision("rejected", f"spread ratio {ratio:.3g} is above {gate.spread_max:g}")
    if gate.rank_correlation_min is not None:
        if rho is None:
            return Decision("undecided", "too few distinct rewards for a rank correlation")
        if rho < gate.rank_correlation_min:
            return Decision(
                "rejected", f"rank correlation {rho:.3f} is below {gate.rank_correlation_min:g}"
            )
    return Decision(
        "accepted",
        f"finite; spread ratio {_shown(ratio)}, rank correlation {_shown(rho)} "
        f"on {drift.samples} samples",
    )


def _number(value: float | None) -> float | None:
    """NaN is no evidence: every comparison with it would pass."""
    return None if value is None or math.isnan(value) else value


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
