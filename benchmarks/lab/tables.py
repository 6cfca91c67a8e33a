"""The toy lab's tables: arms, paired differences, sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bench.report import Cell, Table
from lab.arms import SETS, Arm
from lab.outcomes import KL_LEVELS, Outcomes
from lab.stats import Mean, TooFewError, mean_of, paired

QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("Noise: the same arm with other samples", "frozen-again", "frozen"),
    ("Does the paper's update hold the policy?", "paper", "frozen"),
    ("- and does it matter whose states it sees?", "paper", "paper-shuffled"),
    ("- and do the states help at all?", "paper", "paper-none"),
    ("Does `guarded` hold it, without labels?", "guarded", "frozen"),
    ("A policy KL instead", "frozen-kl", "frozen"),
    ("Do labels on 25 % of the groups hold it?", "labelled-25", "frozen"),
    ("- on 5 %?", "labelled-5", "frozen"),
    ("- on 10 %?", "labelled-10", "frozen"),
    ("- on 50 %?", "labelled-50", "frozen"),
    ("- with `guarded` around them?", "guarded-25", "frozen"),
    ("Policy's states over another sample's", "labelled-25", "shuffled-25"),
    ("Policy's states over noise", "labelled-25", "noise-25"),
    ("Policy's states over none (head alone)", "labelled-25", "none-25"),
    ("Policy's states over the reward model's own", "labelled-25", "backbone-25"),
    ("- at 5 %", "labelled-5", "backbone-5"),
    ("- at 10 %", "labelled-10", "backbone-10"),
    ("- at 50 %", "labelled-50", "backbone-50"),
    ("The reward model's own over none", "backbone-25", "none-25"),
    ("Retraining the whole reward model over `labelled`", "retrained-25", "labelled-25"),
)
WEAK_QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("Do labels on 25 % hold it?", "weak-labelled-25", "weak-frozen"),
    ("Policy's states over another sample's", "weak-labelled-25", "weak-shuffled-25"),
    ("Policy's states over none", "weak-labelled-25", "weak-none-25"),
    ("Policy's states over the reward model's own", "weak-labelled-25", "weak-backbone-25"),
    ("Retraining over `labelled`", "weak-retrained-25", "weak-labelled-25"),
)


def main_table(
    found: Outcomes,
    sets: Sequence[str] = ("core", "more"),
    *,
    name: str = "arms",
    title: str = "Arms: gold of the policy, mean over seeds",
) -> Table:
    """One row an arm: gold at its peak, at the end, at equal KL; how right the reward still is."""
    arms = _sorted([arm for one in sets for arm in SETS[one] if arm.name in found])
    table = Table(
        name,
        title,
        ["arm", "seeds", "peak", "final", *(f"at KL {level:g}" for level in KL_LEVELS),
         "pair accuracy", "final KL", "final − frozen", "wins"],
    )  # fmt: skip
    for arm in arms:
        runs = list(found[arm.name].values())
        against = "weak-frozen" if arm.start == "weak" else "frozen"
        difference = _difference(found, arm.name, against) if arm.name != against else None
        table.rows.append(
            [
                arm.says,
                len(runs),
                *(_cell([getattr(run, key) for run in runs]) for key in ("peak", "final")),
                *(_some([run.at_kl[level] for run in runs]) for level in KL_LEVELS),
                _some([run.accuracy for run in runs]),
                _cell([run.kl for run in runs], 0),
                difference.shown() if difference else None,
                f"{difference.positive}/{difference.count}" if difference else None,
            ]
        )
    table.notes.append(
        "Gold is the number of valid transitions (15 at most) less 0.15 for each invalid one; "
        "± is half a 95 % interval over seeds (Student). At KL n: where the policy first was n "
        "nats away from its start; in brackets how many runs got there, if not all. Pair "
        "accuracy: of the reward, within groups, over the last 20 steps. Wins: seeds that end "
        "above the frozen arm of the same seed."
    )
    return table


def questions_table(
    found: Outcomes,
    questions: Iterable[tuple[str, str, str]] = QUESTIONS,
    *,
    name: str = "questions",
    title: str = "Questions: differences of two arms on the same seeds",
) -> Table:
    """Paired differences, each with what it says."""
    table = Table(
        name, title, ["question", "final gold", "says", f"gold at KL {KL_LEVELS[1]:g}", "says"]
    )
    for question, ours, theirs in questions:
        if ours not in found or theirs not in found:
            continue
        final = _difference(found, ours, theirs)
        level = _difference_at(found, ours, theirs, KL_LEVELS[1])
        table.rows.append(
            [
                f"{question} (`{ours}` − `{theirs}`)",
                final.shown() if final else None,
                final.says if final else "too few seeds",
                level.shown() if level else None,
                level.says if level else "too few seeds",
            ]
        )
    table.notes.append(
        "Difference of the two arms seed by seed, mean ± half a 95 % interval. `open`: the "
        "interval holds zero, so these seeds cannot tell. Nothing is corrected for the number of "
        "questions: of twenty, one may be called better or worse by chance."
    )
    return table


def sweep_table(found: Outcomes) -> Table:
    """Settings: difference to the same arm with its profile's own."""
    table = Table(
        "sweeps",
        "Settings: final gold against the same arm with its own settings",
        ["arm", "peak", "final", "difference", "says"],
    )
    bases = ("labelled-25", "backbone-25", "guarded", "paper")
    for base in bases:
        names = [base, *(arm.name for arm in SETS["sweeps"] if arm.name.startswith(f"{base}-"))]
        for name in names:
            if name not in found:
                continue
            runs = list(found[name].values())
            difference = _difference(found, name, base) if name != base else None
            table.rows.append(
                [
                    f"`{name}`",
                    _cell([run.peak for run in runs]),
                    _cell([run.final for run in runs]),
                    difference.shown() if difference else None,
                    difference.says if difference else None,
                ]
            )
    table.notes.append(
        "`labelled`'s own: lr 0.04/√(64·64) = 6.25e-4, Ω 0.6, no α (labelled pairs have BT "
        "alone). `guarded`'s own: the same lr, α 0.3, KL weight 1. `paper` here: lr 1e-3, α 0.3. "
        "α 0 is without GRE, α 1 GRE alone."
    )
    return table


def _sorted(arms: Sequence[Arm]) -> list[Arm]:
    """Kin together: an arm whose words begin with a dash belongs to the one above it."""
    order = ("frozen", "paper", "guarded", "labelled", "shuffled", "backbone", "none", "noise")

    def key(arm: Arm) -> tuple[int, float, int]:
        family = arm.name.removeprefix("weak-").split("-")[0]
        kind = {"frozen": 0, "paper": 1, "guarded": 2}.get(family, 3)
        place = order.index(family) if family in order else len(order)
        if kind < 3:
            return kind, 0.0, [one.name for one in arms].index(arm.name)
        return kind, arm.labelled, place

    return sorted(arms, key=key)


def _cell(values: Sequence[float], digits: int = 2) -> Cell:
    try:
        mean = mean_of(values)
    except TooFewError:
        return "too few"
    return f"{mean.mean:.{digits}f} ± {mean.half:.{digits}f}"


def _some(values: Sequence[float | None]) -> Cell:
    """Of runs that have the number: how many stands in brackets, if not all."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    cell = _cell(there)
    return cell if len(there) == len(values) else f"{cell} ({len(there)})"


def _difference(found: Outcomes, ours: str, theirs: str) -> Mean | None:
    seeds = sorted(found[ours].keys() & found[theirs].keys())
    try:
        return paired(
            [found[ours][seed].final for seed in seeds],
            [found[theirs][seed].final for seed in seeds],
        )
    except TooFewError:
        return None


def _difference_at(found: Outcomes, ours: str, theirs: str, level: float) -> Mean | None:
    differences = [
        a - b
        for seed in sorted(found[ours].keys() & found[theirs].keys())
        if (a := found[ours][seed].at_kl[level]) is not None
        and (b := found[theirs][seed].at_kl[level]) is not None
    ]
    try:
        return mean_of(differences)
    except TooFewError:
        return None
