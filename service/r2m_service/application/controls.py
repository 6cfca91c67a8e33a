"""What a run's controls say at an align, and what a head remembers of it.

The sums travel with the heads (`Head.metrics`), as the controls' weights do: a rollback takes both
back, and what no head stands for is not counted.
"""

from __future__ import annotations

import math
from typing import Any

from r2m_service.application.align_job import ControlUpdate, Update
from r2m_service.application.contract import ControlOut, ControlsOut, ControlTotal
from r2m_service.domain.controls import FEWEST_PAIRS, Comparison
from r2m_service.domain.method import MethodSettings
from r2m_service.domain.runs import Head

KEY = "controls"
UNLABELLED = (
    "no outside label has come that neither had learnt from: give `preferred` with a group{late}"
)
LATE = ", or labels of samples that are marked (audit_rate)"
WITHHELD = (
    "the outside labels of this step are kept to judge with (judge_share), and controls are asked "
    "those that are learnt from"
)
NOT_COUNTED = "the step was not accepted: its labels are not counted"


def controls_out(
    update: Update, parent: Head, method: MethodSettings, *, accepted: bool, withheld: int = 0
) -> ControlsOut | None:
    """The report of an align; None for a run without controls, or where nothing was learnt.

    Args:
        method: of the run.
        accepted: whether the candidate became live: its pairs count from then on.
        withheld: groups whose labels are kept to judge with.
    """
    if not update.controls:
        return None
    before = {
        one["control"]: one["total"] for one in (parent.metrics.get(KEY) or {}).get("arms", [])
    }
    return ControlsOut(
        arms=[
            _arm(
                one,
                _comparison(before.get(one.control)),
                nothing=WITHHELD
                if withheld
                else UNLABELLED.format(late=LATE if method.replay_groups else ""),
                accepted=accepted,
            )
            for one in update.controls
        ],
    )


def _arm(update: ControlUpdate, before: Comparison, *, nothing: str, accepted: bool) -> ControlOut:
    now = Comparison()
    for margins in update.margins:
        if all(math.isfinite(one) for one in margins):
            now = now.add(*margins)
    total = before + now if accepted else before
    return ControlOut(
        control=update.control,
        verdict="not_available" if update.unavailable else total.verdict,
        pairs=now.pairs,
        accuracy=_share(now.control, now.pairs),
        head_accuracy=_share(now.head, now.pairs),
        moved=update.moved and accepted,
        total=_total(total),
        note=update.unavailable or _note(total, now, nothing),
    )


def _note(total: Comparison, now: Comparison, nothing: str) -> str:
    if not total.pairs:
        return NOT_COUNTED if now.pairs else nothing
    if total.pairs < FEWEST_PAIRS:
        return f"{total.pairs} of the {FEWEST_PAIRS} pairs that a verdict takes"
    return ""


def _total(sums: Comparison) -> ControlTotal:
    low, high = sums.interval or (None, None)
    return ControlTotal(
        pairs=sums.pairs,
        head_accuracy=_share(sums.head, sums.pairs),
        accuracy=_share(sums.control, sums.pairs),
        head_bt=_share(sums.head_bt, sums.pairs),
        bt=_share(sums.control_bt, sums.pairs),
        discordant=sums.discordant,
        difference=sums.difference,
        low=low,
        high=high,
    )


def _comparison(total: dict[str, Any] | None) -> Comparison:
    """The sums behind a total."""
    if not total or not total["pairs"]:
        return Comparison()
    pairs = total["pairs"]

    def halves(share: float) -> float:
        return round(2 * share * pairs) / 2  # exact again: a pair counts 0, a half or 1

    return Comparison(
        pairs=pairs,
        head=halves(total["head_accuracy"]),
        control=halves(total["accuracy"]),
        discordant=total["discordant"],
        head_bt=total["head_bt"] * pairs,
        control_bt=total["bt"] * pairs,
    )


def _share(value: float, pairs: int) -> float | None:
    return value / pairs if pairs else None
