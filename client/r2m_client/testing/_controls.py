"""Controls of the fake: it learns nothing, so each answers with the vanilla rewards."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from r2m_client.testing._form import invalid
from r2m_client.testing._texts import text_of

if TYPE_CHECKING:
    from r2m_client.testing._align_groups import Sorted
    from r2m_client.testing._loss import Rewards
    from r2m_client.testing._state import Head, Run

Pair = frozenset[str]
"""Two texts."""
FEWEST_PAIRS = 30
SHARES = ("head_accuracy", "accuracy", "head_bt", "bt")
NO_PAIR = (
    "no outside label has come that neither had learnt from: give `preferred` with a group, or "
    "labels of samples that are marked (audit_rate)"
)


def require_sense(controls: list[str], feedback: str, labels: str) -> None:
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
    if controls and labels == "pseudo":
        raise invalid(
            "controls are judged by outside labels, and a run with labels pseudo takes none: give "
            "labels outside_first or outside_only, or leave the controls out",
            "method.controls",
        )


def controls_of(run: Run, parent: Head, groups: Sorted, *, accepted: bool) -> dict[str, Any] | None:
    """The report of an align. Its interval is all there is: the fake never decides."""
    if not run.method.controls:
        return None
    fresh = _fresh(parent, groups)
    now = _sums(list(fresh.values()))
    known: dict[str, Any] = parent.metrics.get("controls") or {"arms": [{"total": _total({})}]}
    total = known["arms"][0]["total"]
    if accepted and now:
        count = total["pairs"]
        total = _total(
            {
                "pairs": count + now["pairs"],
                "discordant": total["discordant"] + now["discordant"],
                **{name: count * (total[name] or 0.0) + now[name] for name in SHARES},
            }
        )
    found: dict[str, Any] = {
        "verdict": "too_few_pairs" if total["pairs"] < FEWEST_PAIRS else "no_difference_yet",
        "pairs": len(fresh),
        "head_accuracy": now["head_accuracy"] / len(fresh) if fresh else None,
        "accuracy": now["accuracy"] / len(fresh) if fresh else None,
        "moved": accepted,
        "total": total,
        "note": "",
    }
    if not total["pairs"] and not fresh:
        found["note"] = NO_PAIR
    elif 0 < total["pairs"] < FEWEST_PAIRS:
        found["note"] = f"{total['pairs']} of the {FEWEST_PAIRS} pairs that a verdict takes"
    arms = [{"control": name, **found} for name in run.method.controls]
    return {"arms": arms}


def asked_after(run: Run, parent: Head, groups: Sorted, *, accepted: bool) -> frozenset[Pair]:
    """The pairs that a version and its ancestors have learnt from: no news any more."""
    if not run.method.controls or not accepted:
        return parent.asked
    return parent.asked | _fresh(parent, groups).keys()


def _fresh(parent: Head, groups: Sorted) -> dict[Pair, Rewards]:
    """Labelled groups by their pair, each pair once, whoever of the two is the better."""
    found: dict[Pair, Rewards] = {}
    for group, rewards in zip(groups.used, groups.rewards, strict=True):
        if rewards.preferred is not None:
            samples = list(group.samples)
            pair = frozenset(
                json.dumps(text_of(asdict(replace(samples[place], hidden_states=None))))
                for place in rewards.preferred
            )
            if pair not in parent.asked:
                found.setdefault(pair, rewards)
    return found


def _sums(fresh: list[Rewards]) -> dict[str, float]:
    if not fresh:
        return {}
    found: dict[str, float] = dict.fromkeys(("pairs", "discordant", *SHARES), 0.0)
    for one in fresh:
        assert one.preferred is not None
        winner, loser = one.preferred
        head, control = (by[winner] - by[loser] for by in (one.trained, one.vanilla))
        found["pairs"] += 1
        found["discordant"] += (_right(head) - _right(control)) ** 2
        found["head_accuracy"] += _right(head)
        found["accuracy"] += _right(control)
        found["head_bt"] += _bradley_terry(head)
        found["bt"] += _bradley_terry(control)
    return found


def _total(sums: dict[str, float]) -> dict[str, Any]:
    pairs = int(sums.get("pairs", 0))
    shares = {name: sums[name] / pairs if pairs else None for name in SHARES}
    return {
        "pairs": pairs,
        **shares,
        "discordant": sums.get("discordant", 0.0),
        "difference": (sums["head_accuracy"] - sums["accuracy"]) / pairs if pairs else None,
        "low": -1.0 if pairs else None,
        "high": 1.0 if pairs else None,
    }


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _bradley_terry(margin: float) -> float:
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
