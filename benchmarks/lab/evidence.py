"""Tables into docs/evidence.md; and whether a run of the lab agrees with what is published."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from bench.machine import ROOT
from bench.report import Table, machine_line, replace_between
from lab.outcomes import KL_LEVELS, Outcomes
from lab.questions import QUESTIONS, TUNED_QUESTIONS, WEAK_QUESTIONS, difference
from lab.stats import Mean, TooFewError, mean_of

PAGE = ROOT / "docs" / "evidence.md"
IMAGES = ROOT / "docs" / "img"
PUBLISHED = Path(__file__).with_name("published.json")
BEFORE = Path(__file__).with_name("published_before.json")
"""The numbers that were published before, from another kind of processor: the same seeds round
otherwise there, and soon it is another run."""
MEASURES = ("peak", "final", *(f"kl{level:g}" for level in KL_LEVELS))
MAY_DIFFER = 0.1
"""Share of the numbers that may lie outside both intervals: by chance a twentieth would, of numbers
that are not told apart; many of these are."""


class Published(TypedDict):
    """What the page's numbers were made with, and they.

    Attributes:
        arms: by arm and measure; differences: of final gold, by "ours − theirs".
    """

    machine: dict[str, Any]
    steps: int
    arms: dict[str, dict[str, dict[str, float]]]
    differences: dict[str, dict[str, float]]


def means(found: Outcomes) -> dict[str, dict[str, Mean]]:
    """By arm and measure; what too few seeds have is left out."""
    made: dict[str, dict[str, Mean]] = {}
    for arm, seeds in found.items():
        for measure in MEASURES:
            values = [
                run.at_kl[float(measure[2:])] if measure.startswith("kl") else getattr(run, measure)
                for run in seeds.values()
            ]
            try:
                mean = mean_of([value for value in values if value is not None])
            except TooFewError:
                continue
            made.setdefault(arm, {})[measure] = mean
    return made


def differences(found: Outcomes) -> dict[str, Mean]:
    """Of final gold, by what is taken from what, for all questions that can be answered."""
    made: dict[str, Mean] = {}
    for _, ours, theirs in (*QUESTIONS, *WEAK_QUESTIONS, *TUNED_QUESTIONS):
        if ours in found and theirs in found:
            mean = difference(found, ours, theirs)
            if mean is not None:
                made[f"{ours} − {theirs}"] = mean
    return made


def publish(
    tables: Sequence[Table], found: Outcomes, machine: dict[str, Any], steps: int, text: str = ""
) -> None:
    """Write the page's section, and the numbers that later runs are compared with."""
    if PUBLISHED.is_file() and _published(PUBLISHED)["machine"]["cpu"] != machine["cpu"]:
        BEFORE.write_text(PUBLISHED.read_text())
    tables = [*tables, *twice(found)]
    line = f"{machine_line(machine)} {steps} steps a run."
    body = "\n\n".join([line, *([text] if text else []), *(table.markdown() for table in tables)])
    replace_between(PAGE, "lab", body)
    kept: Published = {
        "machine": {key: machine[key] for key in ("date", "commit", "cpu")},
        "steps": steps,
        "arms": {
            arm: {name: _kept(mean) for name, mean in measures.items()}
            for arm, measures in means(found).items()
        },
        "differences": {name: _kept(mean) for name, mean in differences(found).items()},
    }
    PUBLISHED.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def twice(found: Outcomes) -> list[Table]:
    """Every question here and in the run before, if there was one: what holds in both."""
    if not BEFORE.is_file():
        return []
    before = _published(BEFORE)
    table = Table(
        "twice",
        "The same questions, run twice: final gold",
        ["question", "here", "says", "before", "says", "in both"],
    )
    now = differences(found)
    for question, ours, theirs in (*QUESTIONS, *WEAK_QUESTIONS, *TUNED_QUESTIONS):
        name = f"{ours} − {theirs}"
        if name not in now or name not in before["differences"]:
            continue
        here, kept = now[name], before["differences"][name]
        there = Mean(kept["mean"], kept["half"], here.count, 0)
        says = here.says if here.says == there.says else "-"
        table.rows.append(
            [f"{question} (`{ours}` − `{theirs}`)", here.shown(), here.says, there.shown(),
             there.says, says]
        )  # fmt: skip
    machine = before["machine"]
    table.notes.append(
        f"Before: {machine['date']}, commit {machine['commit']}, {machine['cpu']}. Seeds begin "
        "at the same, but another processor rounds otherwise, and what is rounded otherwise is "
        "soon another run. Take for found what both say."
    )
    return [table]


def _published(path: Path) -> Published:
    found: Published = json.loads(path.read_text())
    return found


def _kept(mean: Mean) -> dict[str, float]:
    return {"mean": round(mean.mean, 4), "half": round(mean.half, 4)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """A run of the lab beside what is published.

    Attributes:
        reproduced: whether so many agree that the rest may be chance.
    """

    table: Table
    reproduced: bool


def against_published(found: Outcomes, steps: int) -> Agreement | None:
    """Each number beside the published one; None where there are none of this length."""
    if not PUBLISHED.is_file():
        return None
    published = _published(PUBLISHED)
    if published["steps"] != steps:
        return None
    table = Table(
        "published",
        "Against docs/evidence.md",
        ["arm", "measure", "here", "published", "agrees"],
    )
    pairs = [
        (arm, name, mean, published["arms"].get(arm, {}).get(name))
        for arm, measures in means(found).items()
        for name, mean in measures.items()
    ]
    pairs += [
        (name, "final, difference", mean, published.get("differences", {}).get(name))
        for name, mean in differences(found).items()
    ]
    agrees = compared = 0
    for arm, name, mean, theirs in pairs:
        if theirs is None:
            continue
        inside = abs(mean.mean - theirs["mean"]) <= math.hypot(mean.half, theirs["half"])
        compared, agrees = compared + 1, agrees + inside
        table.rows.append(
            [
                arm,
                name,
                f"{mean.mean:.2f} ± {mean.half:.2f}",
                f"{theirs['mean']:.2f} ± {theirs['half']:.2f}",
                "yes" if inside else "NO",
            ]
        )
    if not compared:
        return None
    reproduced = compared - agrees <= MAY_DIFFER * compared
    table.notes.append(
        f"{agrees} of {compared} within the two intervals together. "
        + (
            "It agrees with what is published."
            if reproduced
            else f"**It does not agree with what is published**: more than {MAY_DIFFER:.0%} differ."
        )
        + " The seeds are the published ones, unless --first-seed says otherwise: on the same kind "
        "of processor the numbers are the same, and only other seeds are a test of the claims."
    )
    return Agreement(table, reproduced)
