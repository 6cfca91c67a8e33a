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
    "no outside label has come that neither had learnt from: give `preferred` with a group{late}"
)
LATE = ", or labels of samples that are marked (audit_rate)"
WITHHELD = (
    "the outside labels of this step are kept to judge with (judge_share), and controls are asked "
    "those that are learnt from"
)
NOT_COUNTED = "the step was not accepted: its labels are not counted"
SPLIT = "the hidden states stay with the trainer: another sample's are not here"


def require_sense(
    controls: list[str], feedback: str, labels: str, field: str = "method.controls"
) -> None:
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
            "controls are judged by outside labels, and a run with labels pseudo takes none: with "
            "controls, labels are outside_first or outside_only",
            field,
        )


def controls_of(run: Run, parent: Head, groups: Sorted, *, accepted: bool) -> dict[str, Any] | None:
    """The report of an align. Its interval is all there is: the fake never decides."""
    if not run.method.controls:
        return None
    fresh = list(_fresh(parent, groups).values())
    known: dict[str, Any] = parent.metrics.get("controls") or {"arms": []}
    totals = {one["control"]: one["total"] for one in known["arms"]}
    arms = [
        _arm(run, name, totals.get(name, _total({})), fresh, groups, accepted=accepted)
        for name in run.method.controls
    ]
    return {"arms": arms}


def _arm(
    run: Run,
    name: str,
    total: dict[str, Any],
    fresh: list[Rewards],
    groups: Sorted,
    *,
    accepted: bool,
) -> dict[str, Any]:
    split = any(sample.hidden_states is None for group in groups.used for sample in group.samples)
    if name == "shuffled" and split and run.feedback == "policy":
        out = {"verdict": "not_available", "pairs": 0, "moved": False, "note": SPLIT}
        return {"control": name, **out, "total": total}
    now = _sums(fresh)
    if accepted and now:
        count = total["pairs"]
        total = _total(
            {
                "pairs": count + now["pairs"],
                "discordant": total["discordant"] + now["discordant"],
                **{key: count * total.get(key, 0.0) + now[key] for key in SHARES},
            }
        )
    found: dict[str, Any] = {
        "control": name,
        "verdict": "too_few_pairs" if total["pairs"] < FEWEST_PAIRS else "no_difference_yet",
        "pairs": len(fresh),
        "moved": accepted,
        "total": total,
        "note": _note(run, total["pairs"], groups, counted=bool(fresh)),
    }
    if fresh:
        found |= {key: now[key] / len(fresh) for key in ("head_accuracy", "accuracy")}
    return found


def _note(run: Run, pairs: int, groups: Sorted, *, counted: bool) -> str:
    if pairs:
        few = f"{pairs} of the {FEWEST_PAIRS} pairs that a verdict takes"
        return few if pairs < FEWEST_PAIRS else ""
    if counted:
        return NOT_COUNTED
    return (
        WITHHELD if groups.withheld else NO_PAIR.format(late=LATE * bool(run.method.replay_groups))
    )


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
    found: dict[str, Any] = {"pairs": pairs, "discordant": sums.get("discordant", 0.0)}
    if pairs:
        found |= {name: sums[name] / pairs for name in SHARES}
        found["difference"] = (sums["head_accuracy"] - sums["accuracy"]) / pairs
        found |= {"low": -1.0, "high": 1.0}
    return found


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _bradley_terry(margin: float) -> float:
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
