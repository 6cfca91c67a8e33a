"""Tables into docs/evidence.md; and whether a run of the lab agrees with what is published."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from bench.machine import ROOT
from bench.report import Table, machine_line, replace_between
from lab.outcomes import KL_LEVELS, Outcomes
from lab.stats import Mean, TooFewError, mean_of

PAGE = ROOT / "docs" / "evidence.md"
IMAGES = ROOT / "docs" / "img"
PUBLISHED = Path(__file__).with_name("published.json")
MEASURES = ("peak", "final", f"kl{KL_LEVELS[0]:g}")


class Published(TypedDict):
    """What the page's numbers were made with, and they."""

    machine: dict[str, Any]
    steps: int
    arms: dict[str, dict[str, dict[str, float]]]


def means(found: Outcomes) -> dict[str, dict[str, Mean]]:
    """By arm and measure; what too few seeds have is left out."""
    made: dict[str, dict[str, Mean]] = {}
    for arm, seeds in found.items():
        for measure in MEASURES:
            values = [
                run.at_kl[KL_LEVELS[0]] if measure.startswith("kl") else getattr(run, measure)
                for run in seeds.values()
            ]
            try:
                mean = mean_of([value for value in values if value is not None])
            except TooFewError:
                continue
            made.setdefault(arm, {})[measure] = mean
    return made


def publish(
    tables: Sequence[Table], found: Outcomes, machine: dict[str, Any], steps: int, text: str = ""
) -> None:
    """Write the page's section, and the numbers that later runs are compared with."""
    line = f"{machine_line(machine)} {steps} steps a run."
    body = "\n\n".join([line, *([text] if text else []), *(table.markdown() for table in tables)])
    replace_between(PAGE, "lab", body)
    kept: Published = {
        "machine": {key: machine[key] for key in ("date", "commit", "cpu")},
        "steps": steps,
        "arms": {
            arm: {
                name: {"mean": round(mean.mean, 4), "half": round(mean.half, 4)}
                for name, mean in measures.items()
            }
            for arm, measures in means(found).items()
        },
    }
    PUBLISHED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def against_published(found: Outcomes, steps: int) -> Table | None:
    """Each arm beside its published numbers; None where there are none of this length."""
    if not PUBLISHED.is_file():
        return None
    published: Published = json.loads(PUBLISHED.read_text())
    if published["steps"] != steps:
        return None
    table = Table(
        "published",
        "Against docs/evidence.md",
        ["arm", "measure", "here", "published", "agrees"],
    )
    agrees = compared = 0
    for arm, measures in means(found).items():
        for name, mean in measures.items():
            theirs = published["arms"].get(arm, {}).get(name)
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
    table.notes.append(
        f"{agrees} of {compared} within the two intervals together; one in twenty or so may "
        "differ by chance."
    )
    return table if compared else None
