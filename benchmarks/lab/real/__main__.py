"""Real text: `make lab-real`, or `PYTHONPATH=benchmarks python -m lab.real --help`."""

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
from bench.models import smollm2
from bench.report import Table, machine_line, replace_between
from lab.evidence import PAGE
from lab.real import data
from lab.real.arms import ARMS, GROUPS_A_STEP, SHORTEST, STEPS
from lab.real.run import VANILLA, Found, Setting, TooLittleError, material, run_all
from lab.real.tables import main_table, questions_table, rates_table
from lab.stats import FEWEST, mean_of

CHANCE = 50.0
HEAD = ROOT / "examples" / "demo" / "head.safetensors"
"""Only so that the model loads: its rewards are not looked at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed, align, measure; 2 where it cannot, or would show nothing."""
    given = parser_of_sizes().parse_args(arguments)
    for value, least, what in (
        (given.splits, FEWEST, "splits"),
        (given.steps, SHORTEST, "aligns"),
        (given.groups, 1, "groups of an align"),
        (given.prompts, 1, "prompts"),
        (given.pairs, 1, "pairs"),
        (given.workers, 1, "workers"),
    ):
        if value < least:
            print(f"{value} {what} show nothing: at least {least}", file=sys.stderr)
            return 2
    missing = [
        f"--{flag} {path}: there is no such folder or file"
        for flag, path in (("model", given.model), ("head", given.head))
        if path is not None and not path.exists()
    ]
    refused = [*missing, *why_not_writable(given.out), *why_not_writable(given.cache, "--cache")]
    if refused:
        print("\n".join(refused), file=sys.stderr)
        return 2
    try:
        folder = data.folder()
    except data.NoDataError as error:
        print(error, file=sys.stderr)
        return 2
    what, started = machine.describe(), time.monotonic()
    own = given.model is not None
    setting = Setting(
        folder=folder,
        prompts=given.prompts,
        pairs=given.pairs,
        model=given.model if own else smollm2(lambda line: print(line, file=sys.stderr)),
        head=given.head if own else HEAD,
        kept=given.cache,
        steps=given.steps,
        groups_a_step=given.groups,
    )
    try:
        of = material(setting, given.workers)
    except TooLittleError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"({time.monotonic() - started:.0f} s so far)", file=sys.stderr)
    found = run_all(setting, given.splits, given.workers)
    before = mean_of([100 * one.held_out for one in found[VANILLA].values()])
    if before.low <= CHANCE:
        print(
            f"this shows nothing: before any align the fitted reward model has {before.mean:.1f} ± "
            f"{before.half:.1f} % of the held-out pairs right, which is not told from a coin; "
            "there is nothing that an align could spoil or better"
        )
        return 1
    tables = [main_table(found, ARMS, given.steps), questions_table(found), rates_table(found)]
    tables[0].notes.insert(
        0,
        f"{len(of.groups)} prompts of AlpacaEval, {data.K} responses each, GPT-4's preference as "
        f"gold, in thirds by prompt: fit, align, held out; {len(of.pairs)} PandaLM pairs with a "
        f"majority of three people. {given.splits} splits.",
    )
    for table in tables:
        print(table.text(), flush=True)
    took = time.monotonic() - started
    print(f"({took:.0f} s)")
    _save(found, tables, what, given.out)
    if given.write:
        line = f"{machine_line(what)} {took / 60:.0f} minutes."
        body = "\n\n".join([line, *(table.markdown() for table in tables)])
        replace_between(PAGE, "real", body)
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


def parser_of_sizes() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="lab.real", description=__doc__)
    parser.add_argument("--prompts", type=int, default=240, help="groups of 4 responses")
    parser.add_argument("--pairs", type=int, default=200, help="of people's votes")
    parser.add_argument("--splits", type=int, default=8, help=f"at least {FEWEST}")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "lab")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "lab")
    parser.add_argument("--model", type=Path, help="a causal LM's folder; default: SmolLM2-135M")
    parser.add_argument("--head", type=Path, help="its scoring head, if it has none of its own")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"aligns of each arm, at least {SHORTEST}"
    )
    parser.add_argument("--groups", type=int, default=GROUPS_A_STEP, help="of each align")
    parser.add_argument("--write", action="store_true", help="docs/evidence.md, too")
    return parser


def _save(found: Found, tables: Sequence[Table], what: dict[str, object], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    kept = {
        "machine": what,
        "arms": {
            arm: {n: asdict(one) for n, one in sorted(splits.items())}
            for arm, splits in found.items()
        },
        "tables": [asdict(table) for table in tables],
    }
    (out / "real.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
