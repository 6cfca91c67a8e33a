"""What an align found, in the form of its answer."""

from __future__ import annotations

from collections import Counter

from r2m_service.application.align_job import GroupResult, Update
from r2m_service.application.contract import (
    AlignAnswer,
    DriftOut,
    EvidenceOut,
    GroupCounts,
    LossOut,
)
from r2m_service.domain.evidence import (
    agreement,
    feedback_gain,
    length_correlation,
    mean_of,
    pseudo_label,
)
from r2m_service.domain.gate import Drift, measure_drift


def counts(update: Update, results: list[GroupResult], *, withheld: int) -> GroupCounts:
    """What became of the groups."""
    because = Counter(result.skipped for result in results if result.skipped is not None)
    return GroupCounts(
        used=update.labelled + update.pseudo,
        skipped=because.total(),
        pseudo=update.pseudo,
        labelled=update.labelled,
        skipped_because=dict(sorted(because.items())),
        replayed=update.replayed,
        withheld=withheld,
        disagree=sum(
            one.rewards[one.preferred[0]] <= one.rewards[one.preferred[1]]
            for one in update.measured
            if one.preferred is not None
        ),
    )


def evidence_out(update: Update, results: list[GroupResult]) -> EvidenceOut | None:
    """What the step's groups show beside the gate; nothing where none was used."""
    measured = update.measured
    if not measured:
        return None
    origin = [one for one in measured if one.origin]
    drift = measure_drift([one.candidate for one in origin], [one.origin for one in origin])
    rewards = [one.rewards for one in measured]
    pseudo = [one for one in measured if one.preferred is None]
    return EvidenceOut(
        spread_ratio=drift.spread_ratio if origin else None,
        rank_correlation=drift.rank_correlation if origin else None,
        length_correlation=length_correlation(rewards, [one.tokens for one in measured]),
        unusable=sum(result.skipped is not None for result in results) / len(results),
        vanilla_agreement=agreement([(one.vanilla, *pseudo_label(one.rewards)) for one in pseudo]),
        label_agreement=agreement(
            [(one.rewards, *one.preferred) for one in measured if one.preferred is not None]
        ),
        feedback_gain=feedback_gain(rewards, [one.other for one in measured]),
        reward_mean=mean_of(rewards),
        vanilla_mean=mean_of([one.vanilla for one in measured]),
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


def notes(update: Update, *, untold: int) -> list[str]:
    """What a person should know beside the numbers.

    Args:
        untold: how often the trainer was asked about the candidate and did not say.
    """
    found: list[str] = []
    bare = update.pseudo - update.gre_groups
    if bare > 0:
        found.append(f"{bare} groups of two samples: BT alone, since GRE is constant at K = 2")
    if untold:
        found.append(
            f"the trainer keeps the hidden states and did not say v·c under the candidate for "
            f"{untold} samples: drift was measured on the groups that are whole"
        )
    return found


def without_non_finite(answer: AlignAnswer) -> AlignAnswer:
    """No failure looks like a number, and JSON has no NaN: what is not finite is left out."""

    def kept(value: float | None) -> float | None:
        return None if value is None or value - value != 0.0 else value

    drift, evidence = answer.drift, answer.evidence
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
            "evidence": evidence and EvidenceOut(**{key: kept(value) for key, value in evidence}),
        }
    )
