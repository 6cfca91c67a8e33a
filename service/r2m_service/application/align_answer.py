"""What an align found, in the form of its answer."""

from __future__ import annotations

from collections import Counter

from r2m_service.application.contract import AlignAnswer, DriftOut, GroupCounts, LossOut
from r2m_service.application.ports import GroupResult, Update
from r2m_service.domain.gate import Drift


def counts(update: Update, results: list[GroupResult]) -> GroupCounts:
    """What became of the groups."""
    because = Counter(result.skipped for result in results if result.skipped is not None)
    return GroupCounts(
        used=update.labelled + update.pseudo,
        skipped=because.total(),
        pseudo=update.pseudo,
        labelled=update.labelled,
        skipped_because=dict(sorted(because.items())),
    )


def drift_out(reference: int, drift: Drift | None) -> DriftOut | None:
    """The drift, where it was measured."""
    if drift is None:
        return None
    return DriftOut(
        reference=reference,
        spread_ratio=drift.spread_ratio,
        rank_correlation=drift.rank_correlation,
        samples=drift.samples,
    )


def notes(update: Update) -> list[str]:
    """What a person should know beside the numbers."""
    bare = update.pseudo - update.gre_groups
    if bare > 0:
        return [f"{bare} groups of two samples: BT alone, since GRE is constant at K = 2"]
    return []


def without_non_finite(answer: AlignAnswer) -> AlignAnswer:
    """No failure looks like a number, and JSON has no NaN: what is not finite is left out."""

    def kept(value: float | None) -> float | None:
        return None if value is None or value - value != 0.0 else value

    drift = answer.drift
    return answer.model_copy(
        update={
            "loss": LossOut(**{key: kept(value) for key, value in answer.loss}),
            "sigma": kept(answer.sigma),
            "gradient_norm": kept(answer.gradient_norm),
            "drift": drift
            and drift.model_copy(
                update={
                    "spread_ratio": kept(drift.spread_ratio),
                    "rank_correlation": kept(drift.rank_correlation),
                }
            ),
        }
    )
