"""Words and numbers that a server with the test's verdict could have answered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from r2m.statistics import centred, rms, spearman
from r2m_client.testing._loss import FLOOR

if TYPE_CHECKING:
    from r2m_client.testing._align_groups import Sorted
    from r2m_client.testing._loss import Rewards
    from r2m_client.testing._method import Gate


def reason_of(
    verdict: str, gate: Gate, groups: Sorted, *, empty: bool
) -> tuple[str, dict[str, Any] | None]:
    """The reason, and the drift."""
    count = sum(len(one.trained) for one in groups.rewards)
    drift: dict[str, Any] | None = None
    if gate.checks_drift:
        drift = {"spread_ratio": 1.0, "rank_correlation": 1.0, "samples": count}
    if verdict == "skipped":
        return ("no groups" if empty else "no group could be used"), None
    if verdict == "frozen":
        return "the run is frozen", None
    if verdict == "accepted":
        if drift is None:
            return "finite; the gate asks for nothing else", None
        words = "finite; spread ratio 1.000, rank correlation 1.000"
        return f"{words} on {count} samples", drift
    if drift is None:
        return "the loss, the gradient or the candidate is not finite", None
    if verdict == "undecided":
        del drift["spread_ratio"], drift["rank_correlation"]
        if gate.spread_min is None and gate.spread_max is None:
            return "too few distinct rewards for a rank correlation", drift
        return "the reference's rewards are equal in every group", drift
    if gate.rank_correlation_min is not None:
        drift["rank_correlation"] = -1.0
        return f"rank correlation -1.000 is below {gate.rank_correlation_min:g}", drift
    drift["spread_ratio"] = ratio = 2 * gate.spread_max if gate.spread_max else 0.0
    bound = gate.spread_max if gate.spread_max else gate.spread_min
    return f"spread ratio {ratio:.3g} is {'above' if ratio else 'below'} {bound:g}", drift


def notes_of(groups: Sorted) -> list[str]:
    """What a person should know beside the numbers."""
    bare = sum(one.preferred is None and not one.has_gre for one in groups.rewards)
    if bare == 0:
        return []
    return [f"{bare} groups of two samples: BT alone, since GRE is constant at K = 2"]


def evidence_of(groups: Sorted) -> dict[str, Any] | None:
    """Live evidence from the test's rewards; nothing where no group was used."""
    rewards = groups.rewards
    if not rewards:
        return None
    ours, first = [one.trained for one in rewards], [one.origin for one in rewards]
    spread = rms(centred(first))
    pseudo = [one for one in rewards if one.preferred is None]
    labelled = [one for one in rewards if one.preferred is not None]
    found = {
        "spread_ratio": rms(centred(ours)) / spread if spread > FLOOR else None,
        "rank_correlation": spearman(centred(ours), centred(first)),
        "length_correlation": _length_correlation(rewards),
        "unusable": groups.skipped.total() / (groups.skipped.total() + len(rewards)),
        "vanilla_agreement": _agreement([(one.vanilla, *one.pseudo_label) for one in pseudo]),
        "label_agreement": _agreement(
            [(one.trained, *one.preferred) for one in labelled if one.preferred is not None]
        ),
        "reward_mean": _mean(ours),
        "vanilla_mean": _mean([one.vanilla for one in rewards]),
    }
    return {key: value for key, value in found.items() if value is not None}


def _mean(rewards: list[list[float]]) -> float:
    found = [one for group in rewards for one in group]
    return math.fsum(found) / len(found)


def _length_correlation(rewards: list[Rewards]) -> float | None:
    found = [spearman(one.trained, one.lengths) for one in rewards]
    known = [one for one in found if one is not None]
    return math.fsum(known) / len(known) if known else None


def _agreement(pairs: list[tuple[list[float], int, int]]) -> float | None:
    if not pairs:
        return None
    right = [0.5 if r[a] == r[b] else float(r[a] > r[b]) for r, a, b in pairs]
    return math.fsum(right) / len(right)
