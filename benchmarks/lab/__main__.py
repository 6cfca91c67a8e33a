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
from bench.machine import ROOT
from bench.report import Table
from lab import jobs, plots, shadows
from lab.arms import SETS
from lab.evidence import IMAGES, PAGE, against_published, publish
from lab.outcomes import SHORTEST, outcomes, why_it_shows_nothing
from lab.signals import fixed_and_learning, signals_table
from lab.stats import FEWEST
from lab.tables import WEAK_QUESTIONS, main_table, questions_table, sweep_table

STEPS, SEEDS = 240, 6
ALL_SEEDS = {"core": 12, "healthy": 12, "weak": 8, "more": 8, "sweeps": 5}
SHADOWS = "shadows"
FIXED = ("frozen", "frozen-again", "frozen-kl", "weak-frozen", "good", "gold")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run arms and print what they show; 1 where they show nothing, 2 where they could not."""
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    seeds = ", ".join(f"{name} ({count})" for name, count in ALL_SEEDS.items())
    parser.add_argument("--sets", nargs="+", choices=SETS, metavar="SET",
                        help=f"beside the core; with their seeds: {seeds}")  # fmt: skip
    parser.add_argument("--shadows", action="store_true",
                        help=f"what a run's own controls would say ({shadows.SEEDS})")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="every set, and --shadows")
    parser.add_argument(
        "--seeds", type=int, help=f"at least {FEWEST}; default: those of the sets, {SEEDS} for "
        "the core by itself"
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=STEPS, help=f"at least {SHORTEST}")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "lab")
    parser.add_argument("--write", action="store_true", help="docs/evidence.md, too")
    given = parser.parse_args(arguments)
    refused = [
        f"{value} {name} would show nothing: at least {least} are needed"
        for value, name, least in (
            (SEEDS if given.seeds is None else given.seeds, "seeds", FEWEST),
            (given.steps, "steps", SHORTEST),
            (given.workers, "workers", 1),
        )
        if value < least
    ]
    if refused:
        print("\n".join(refused), file=sys.stderr)
        return 2
    counts = dict(ALL_SEEDS) if given.all or given.sets else {"core": SEEDS}
    if not given.all and given.sets:
        counts = {name: counts[name] for name in counts if name in ("core", *given.sets)}
    if given.seeds is not None:
        counts = dict.fromkeys(counts, int(given.seeds))
    if given.all or given.shadows:
        counts[SHADOWS] = given.seeds or shadows.SEEDS
    return run(counts, given.steps, given.workers, given.out, write=given.write)


def run(counts: dict[str, int], steps: int, workers: int, out: Path, *, write: bool) -> int:
    """Run the sets, the core first.

    Args:
        counts: seeds of each set.
    """
    what, started = machine.describe(), time.monotonic()
    planned: list[jobs.Job] = []
    for name, seeds in counts.items():
        if name == SHADOWS:
            continue
        work = list(jobs.plan([name], seeds, steps))
        jobs.run_all(work, out, workers)
        planned += work
        if name == "core":
            core = jobs.read(work, out)
            reasons = why_it_shows_nothing(core, steps)
            if reasons:
                print("This lab shows nothing:", *(f"- {one}" for one in reasons), sep="\n")
                return 1
    runs = jobs.read(planned, out)
    found = outcomes(runs)
    tables = [main_table(found, [one for one in ("core", "more") if one in counts])]
    tables.append(questions_table(found))
    if "weak" in counts:
        weak = "with a reward model whose backbone knows little of the language"
        tables.append(main_table(found, ["weak"], name="weak-arms", title=f"Arms, {weak}"))
        tables.append(
            questions_table(
                found,
                WEAK_QUESTIONS,
                name="weak",
                title=f"Questions, {weak}",
            )
        )
    if SHADOWS in counts:
        tables.append(shadows.table(counts[SHADOWS], steps, out, workers, found))
    if "sweeps" in counts:
        tables.append(sweep_table(found))
    if "healthy" in counts:
        fixed, learning = fixed_and_learning(runs, FIXED)
        tables.append(
            signals_table(fixed, name="signals", title="Signals, reward model standing still")
        )
        tables.append(
            signals_table(learning, name="signals-learning", title="Signals, head learning")
        )
    compared = against_published(found, steps)
    for table in (*tables, *([compared] if compared else [])):
        print(table.text(), flush=True)
    _save(tables, out, what)
    for path in plots.save(runs, out):
        print(f"wrote {_short(path)}")
    print(f"({time.monotonic() - started:.0f} s)")
    if write:
        plots.save(runs, IMAGES, "svg")
        publish(tables, found, what, steps)
        print(f"wrote {_short(PAGE)}")
    return 0


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
