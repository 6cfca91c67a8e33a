"""Controls of the fake: it learns nothing, so each answers with the vanilla rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2m_client.testing._form import invalid

if TYPE_CHECKING:
    from r2m_client.testing._align_groups import Sorted
    from r2m_client.testing._state import Head, Run

FEWEST_PAIRS = 30
NO_PAIR = (
    "no outside label has come that neither had learnt from: give `preferred` with a group, or "
    "labels of samples that are marked (audit_rate)"
)


def require_sense(controls: list[str], feedback: str) -> None:
    """Refuse controls that could tell a run nothing.

    Raises:
        Problem: invalid_request.
    """
    if controls and feedback == "none":
        raise invalid(
            "controls tell whether hidden states pay; a run with feedback none attends to none, so "
            f"it takes no controls, got {', '.join(controls)}",
            "method.controls",
        )
    if feedback in controls:
        raise invalid(
            f"the run itself has feedback {feedback}: as a control that would be the same head "
            "again; shuffled and none are left",
            "method.controls",
        )


def controls_of(run: Run, parent: Head, groups: Sorted, *, accepted: bool) -> dict[str, Any] | None:
    """The report of an align; no interval, and so never a difference."""
    if not run.method.controls:
        return None
    pairs = head = control = 0.0
    for one in groups.rewards:
        if one.preferred is not None:
            pairs += 1
            head += _right(one.trained, *one.preferred)
            control += _right(one.vanilla, *one.preferred)
    known: dict[str, Any] = parent.metrics.get("controls") or {"arms": [{"total": {"pairs": 0}}]}
    total = known["arms"][0]["total"]
    if accepted and pairs:
        count = total["pairs"]
        sums = [
            count * total.get(name, 0.0) + right
            for name, right in (("head_accuracy", head), ("accuracy", control))
        ]
        total = {
            "pairs": int(count + pairs),
            "head_accuracy": sums[0] / (count + pairs),
            "accuracy": sums[1] / (count + pairs),
        }
    found: dict[str, Any] = {
        "verdict": "too_few_pairs" if total["pairs"] < FEWEST_PAIRS else "no_difference_yet",
        "pairs": int(pairs),
        "moved": accepted,
        "total": total,
        "note": "",
    }
    if not total["pairs"]:
        found["note"] = NO_PAIR
    elif total["pairs"] < FEWEST_PAIRS:
        found["note"] = f"{total['pairs']} of the {FEWEST_PAIRS} pairs that a verdict takes"
    if pairs:
        found |= {"head_accuracy": head / pairs, "accuracy": control / pairs}
    arms = [{"control": name, **found} for name in run.method.controls]
    return {"arms": arms}


def _right(rewards: list[float], winner: int, loser: int) -> float:
    margin = rewards[winner] - rewards[loser]
    return 0.5 if margin == 0 else float(margin > 0)
