"""The toy lab's tables: arms, paired differences, sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.report import Cell, Table
from lab.arms import SETS, Arm
from lab.outcomes import KL_LEVELS, Outcomes
from lab.questions import difference
from lab.stats import TooFewError, mean_of


def main_table(
    found: Outcomes,
    sets: Sequence[str] = ("core", "more", "doubts"),
    *,
    name: str = "arms",
    title: str = "Arms: gold of the policy, mean over seeds",
) -> Table:
    """One row an arm: gold at its peak, at the end, at equal KL; how right the reward still is."""
    arms = _sorted([arm for one in sets for arm in SETS[one] if arm.name in found])
    table = Table(
        name,
        title,
        ["arm", "seeds", "labels", "peak", "final", *(f"at KL {level:g}" for level in KL_LEVELS),
         "pair accuracy", "final KL", "final − frozen", "wins"],
    )  # fmt: skip
    for arm in arms:
        runs = list(found[arm.name].values())
        against = "weak-frozen" if arm.start == "weak" else "frozen"
        apart = difference(found, arm.name, against) if arm.name != against else None
        table.rows.append(
            [
                arm.says,
                len(runs),
                round(sum(run.labels for run in runs) / len(runs)),
                *(cell([getattr(run, key) for run in runs]) for key in ("peak", "final")),
                *(_some([run.at_kl[level] for run in runs]) for level in KL_LEVELS),
                None if arm.reward == "labels" else _some([run.accuracy for run in runs]),
                cell([run.kl for run in runs], 0),
                apart.shown() if apart else None,
                f"{apart.positive}/{apart.count}" if apart else None,
            ]
        )
    table.notes.append(
        "Gold is the number of valid transitions (15 at most) less 0.15 for each invalid one; "
        "± is half a 95 % interval over seeds (Student). At KL n: where the policy first was n "
        "nats away from its start; in brackets how many runs got there, if not all. Pair "
        "accuracy: of the reward, within groups, over the last 20 steps. Wins: seeds that end "
        "above the frozen arm of the same seed. Labels: groups that got one, of 8 a step: a policy "
        "whose eight responses are equally good gets none for them, so what has collapsed is "
        "told less."
    )
    begun = [run.start_accuracy for arm in arms[:1] for run in found[arm.name].values()]
    if begun and all(map(math.isfinite, begun)):
        table.notes.append(
            f"The reward model that all begin with orders {sum(begun) / len(begun):.0%} of fresh "
            "pairs of people's responses as the gold does."
        )
    return table


def sweep_table(found: Outcomes) -> Table:
    """Settings: difference to the same arm with its profile's own."""
    table = Table(
        "sweeps",
        "Settings: final gold against the same arm with its own settings",
        ["arm", "seeds", "peak", "final", "difference", "says"],
    )
    bases = ("labelled-25", "backbone-25", "guarded", "paper")
    for base in bases:
        names = [base, *(arm.name for arm in SETS["sweeps"] if arm.name.startswith(f"{base}-"))]
        for name in names:
            if name not in found:
                continue
            runs = list(found[name].values())
            apart = difference(found, name, base) if name != base else None
            table.rows.append(
                [
                    f"`{name}`",
                    len(runs),
                    cell([run.peak for run in runs]),
                    cell([run.final for run in runs]),
                    apart.shown() if apart else None,
                    apart.says if apart else None,
                ]
            )
    table.notes.append(
        "`labelled`'s own: Ω 0.6, no α (labelled pairs have BT alone). `guarded`'s own: α 0.3, KL "
        "weight 1. `paper` here: lr 1e-3, α 0.3. "
        "α 0 is without GRE, α 1 GRE alone. Differences are of the seeds that both have."
    )
    return table


def _sorted(arms: Sequence[Arm]) -> list[Arm]:
    """Kin together: an arm whose words begin with a dash belongs to the one above it."""
    order = (
        *("labelled", "shuffled", "start", "noise", "backbone", "strange", "none", "retrained"),
        "labels",
    )
    variants = ("", "again", "once", "kl", "scaled", "paid", "wrong", "random", "late")

    def key(arm: Arm) -> tuple[int, float, int, int]:
        family, _, rest = arm.name.removeprefix("weak-").partition("-")
        kind = {"frozen": 0, "paper": 1, "guarded": 2}.get(family, 3)
        if kind < 3:
            return kind, 0.0, 0, [one.name for one in arms].index(arm.name)
        variant = variants.index(rest.partition("-")[2])
        return kind, arm.labelled, variant, order.index(family)

    return sorted(arms, key=key)


def cell(values: Sequence[float], digits: int = 2) -> Cell:
    """Mean and half its 95 % interval, or that there are too few."""
    try:
        mean = mean_of(values)
    except TooFewError:
        return "too few"
    return f"{mean.mean:.{digits}f} ± {mean.half:.{digits}f}"


def _some(values: Sequence[float | None]) -> Cell:
    """Of runs that have the number: how many stands in brackets, if not all."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    said = cell(there)
    return said if len(there) == len(values) else f"{said} ({len(there)})"
