"""The toy lab: `make lab`, or `PYTHONPATH=benchmarks python -m lab --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import machine
from bench.machine import ROOT, why_not_writable
from bench.report import Table
from lab import plots, shadows, study, tuning
from lab.evidence import IMAGES, PAGE, against_published, publish
from lab.jobs import DamagedError
from lab.outcomes import SHORTEST
from lab.stats import FEWEST
from lab.study import SHADOWS, Plan

STEPS, SEEDS = 240, 5
PUBLISHED_SEEDS = {
    "core": 12,
    "healthy": 12,
    "weak": 8,
    "more": 6,
    "doubts": 6,
    "sweeps": 5,
    "tuning": tuning.SEEDS,
    SHADOWS: shadows.SEEDS,
}
"""Of docs/evidence.md."""
ALL_SEEDS = {
    **{name: SEEDS for name in PUBLISHED_SEEDS if name != "doubts"},
    "healthy": PUBLISHED_SEEDS["healthy"],
}
"""Every table within 90 minutes, without a doubter's arms; false alarms are counted, which takes
as many runs as there can be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run arms and print what they show; 1 where they show nothing or other than published."""
    given = parser_of_sets().parse_args(arguments)
    refused = [
        f"{value} {name} would show nothing: at least {least} are needed"
        for value, name, least in (
            (SEEDS if given.seeds is None else given.seeds, "seeds", FEWEST),
            (given.steps, "steps", SHORTEST),
            (given.workers, "workers", 1),
            (given.first_seed, "as the first seed", 0),
        )
        if value < least
    ]
    if given.seeds is not None and given.seeds > tuning.FIRST_SEED:
        refused.append(
            f"--seeds is at most {tuning.FIRST_SEED}: the seeds after those choose learning rates"
        )
    if given.published and given.seeds is not None:
        refused.append("--published has its own seeds: leave --seeds out, or take --all")
    if given.write and (not given.published or given.first_seed):
        refused.append(
            "--write is for --published with its own seeds: what was not run would vanish from "
            "docs/evidence.md"
        )
    refused += why_not_writable(given.out)
    if refused:
        print("\n".join(refused), file=sys.stderr)
        return 2
    plan = Plan(
        counts=_counts(given),
        first=given.first_seed,
        steps=given.steps,
        workers=given.workers,
        out=given.out,
    )
    try:
        return run(plan, write=given.write)
    except DamagedError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, and the same command goes on", file=sys.stderr)
        return 130


def _counts(given: argparse.Namespace) -> dict[str, int]:
    """Seeds of each set, in the order that they run in."""
    if given.published:
        return PUBLISHED_SEEDS
    counts = ALL_SEEDS
    if not given.all:
        seeds = PUBLISHED_SEEDS if given.sets else {**PUBLISHED_SEEDS, "core": SEEDS}
        named = {"core", *(given.sets or []), *([SHADOWS] if given.shadows else [])}
        counts = {name: count for name, count in seeds.items() if name in named}
    return counts if given.seeds is None else dict.fromkeys(counts, int(given.seeds))


def parser_of_sets() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    sets = {name: count for name, count in PUBLISHED_SEEDS.items() if name != SHADOWS}
    seeds = ", ".join(f"{name} ({count})" for name, count in sets.items())
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sets", nargs="+", choices=sets, metavar="SET",
                       help=f"beside the core; with their seeds: {seeds}")  # fmt: skip
    which.add_argument("--all", action="store_true",
                       help=f"all sets but doubts, and --shadows, {SEEDS} seeds (healthy: "
                       f"{ALL_SEEDS['healthy']}): 45 to 90 minutes")  # fmt: skip
    which.add_argument("--published", action="store_true",
                       help="every table, seeds as in docs/evidence.md: two hours")  # fmt: skip
    parser.add_argument("--shadows", action="store_true", help="beside --sets or alone: what a "
                        f"run's own controls would say ({shadows.SEEDS} seeds)")  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, help=f"at least {FEWEST}; default: those of the sets, {SEEDS} for "
        "the core by itself"
    )  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0,
                        help="other seeds than the published ones: a replication")  # fmt: skip
    parser.add_argument("--steps", type=int, default=STEPS, help=f"at least {SHORTEST}")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "lab")
    parser.add_argument(
        "--write", action="store_true", help="docs/evidence.md, too; with --published"
    )
    return parser


def run(plan: Plan, *, write: bool) -> int:
    """Run what is planned, print it, keep it; 1 where it shows nothing or something else."""
    what, started = machine.describe(), time.monotonic()
    try:
        made = study.study(plan)
    except study.ShowsNothingError as error:
        print("This lab shows nothing:", *(f"- {one}" for one in error.reasons), sep="\n")
        return 1
    compared = against_published(made.found, plan.steps)
    tables = [*made.tables, *([compared.table] if compared else [])]
    for table in tables:
        print(table.text(), flush=True)
    _save(tables, plan.out, what)
    for path in plots.save(made.runs, plan.out):
        print(f"wrote {_short(path)}")
    print(f"({time.monotonic() - started:.0f} s)")
    if write:
        plots.save(made.runs, IMAGES, "svg")
        publish(made.tables, made.found, what, plan.steps)
        print(f"wrote {_short(PAGE)}")
        return 0
    return 0 if compared is None or compared.reproduced else 1


def _save(tables: Sequence[Table], out: Path, what: dict[str, object]) -> None:
    text = "\n\n".join(table.markdown() for table in tables)
    (out / "tables.md").write_text(f"{text}\n")
    kept = {"machine": what, "tables": [asdict(table) for table in tables]}
    (out / "summary.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\nwrote {_short(out / 'tables.md')}, summary.json")


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    sys.exit(main())
