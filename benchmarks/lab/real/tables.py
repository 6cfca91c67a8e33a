"""The tables of real text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.report import Cell, Table
from lab.arms import Arm
from lab.real.arms import QUESTIONS, STEPS, SWEPT
from lab.real.study import Measured
from lab.stats import Mean, TooFewError, mean_of, paired

Found = Mapping[str, Mapping[int, Measured]]
"""By arm and split; `vanilla` among them."""

PARTS: Mapping[str, Callable[[Measured], float]] = {
    "held out": lambda one: 100 * one.held_out,
    "people": lambda one: 100 * one.people,
}


def main_table(found: Found, arms: Sequence[Arm], steps: int = STEPS) -> Table:
    """One row an arm: accuracy after its aligns, and the change."""
    table = Table(
        "real",
        "Real text: pair accuracy before and after align, in per cent",
        ["arm", "held out", "change", "people", "change", "spread ratio", "rank corr.", "accepted"],
    )
    vanilla = found["vanilla"]
    before = [_cell([part(one) for one in vanilla.values()]) for part in PARTS.values()]
    table.rows.append(["vanilla, before", before[0], None, before[1], None, None, None, None])
    for arm in arms:
        if arm.name not in found:
            continue
        ours = found[arm.name]
        cells: list[Cell] = []
        for part in PARTS.values():
            change = difference(ours, vanilla, part)
            cells += [_cell([part(one) for one in ours.values()]), _shown(change)]
        aligned = arm.reward == "learner"
        table.rows.append(
            [
                arm.says,
                *cells,
                _cell([one.spread_ratio for one in ours.values()], 2) if aligned else None,
                _cell([one.rank_correlation for one in ours.values()], 2) if aligned else None,
                _cell([one.accepted for one in ours.values()], 0) if aligned else None,
            ]
        )
    table.notes.append(
        f"After {steps} aligns. ± is half a 95 % interval over splits, which share prompts: it is "
        "narrower than one over fresh prompts would be. Spread ratio and rank correlation are to "
        "version 0 at the same ω, on held-out groups."
    )
    return table


def questions_table(found: Found) -> Table:
    """Paired differences, split by split."""
    table = Table(
        "real-questions",
        "Real text: differences of two arms on the same splits, in points",
        ["question", "held out", "says", "people", "says"],
    )
    for question, ours, theirs in QUESTIONS:
        against = theirs or "vanilla"
        if ours not in found or against not in found:
            continue
        row: list[Cell] = [f"{question} (`{ours}` − `{against}`)"]
        for part in PARTS.values():
            change = difference(found[ours], found[against], part)
            row += [_shown(change), change.says if change else "too few splits"]
        table.rows.append(row)
    return table


def rates_table(found: Found) -> Table:
    """Arms with labels at several learning rates: what moved, and what it gained."""
    table = Table(
        "real-rates",
        "Real text: 25 % of the groups labelled, at other learning rates",
        ["arm", "learning rate", "held out", "people", "spread ratio", "rank corr."],
    )
    for arm in SWEPT:
        if arm.name not in found:
            continue
        ours = found[arm.name]
        table.rows.append(
            [
                f"`{arm.name.partition('-lr')[0]}`",
                f"{arm.method['learning_rate']:g}",
                *(_shown(difference(ours, found["vanilla"], part)) for part in PARTS.values()),
                _cell([one.spread_ratio for one in ours.values()], 2),
                _cell([one.rank_correlation for one in ours.values()], 2),
            ]
        )
    table.notes.append(
        "Changes of pair accuracy in points, as above, where their own rate is 1.04e-4."
    )
    return table


def difference(
    ours: Mapping[int, Measured],
    theirs: Mapping[int, Measured],
    part: Callable[[Measured], float],
) -> Mean | None:
    """Ours − theirs on the splits that both have; None where they are too few."""
    splits = sorted(ours.keys() & theirs.keys())
    try:
        return paired([part(ours[n]) for n in splits], [part(theirs[n]) for n in splits])
    except TooFewError:
        return None


def _shown(mean: Mean | None) -> Cell:
    return None if mean is None else mean.shown(1)


def _cell(values: Sequence[float], digits: int = 1) -> Cell:
    try:
        mean = mean_of(values)
    except TooFewError:
        return "too few"
    return f"{mean.mean:.{digits}f} ± {mean.half:.{digits}f}"
