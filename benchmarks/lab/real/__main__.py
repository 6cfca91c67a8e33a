"""Real text: `make lab-real`, or `PYTHONPATH=benchmarks python -m lab.real --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bench import machine
from bench.machine import ROOT
from bench.models import smollm2
from bench.report import Table, machine_line, replace_between
from lab.arms import Arm
from lab.evidence import PAGE
from lab.real import data
from lab.real.arms import ARMS
from lab.real.embed import Embedded, embed
from lab.real.study import Measured, Study
from lab.real.tables import main_table, questions_table
from lab.stats import FEWEST

HEAD = ROOT / "examples" / "demo" / "head.safetensors"
"""Only so that the model loads: its rewards are not looked at."""
VANILLA = "vanilla"
Found = dict[str, dict[int, Measured]]
"""By arm and split."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed, align, measure; 2 where it cannot, or would show nothing."""
    parser = argparse.ArgumentParser(prog="lab.real", description=__doc__)
    parser.add_argument("--prompts", type=int, default=240, help="groups of 4 responses")
    parser.add_argument("--pairs", type=int, default=200, help="of people's votes")
    parser.add_argument("--splits", type=int, default=8, help=f"at least {FEWEST}")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "lab")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "lab")
    parser.add_argument("--model", type=Path, help="a causal LM's folder; default: SmolLM2-135M")
    parser.add_argument("--head", type=Path, default=HEAD, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="docs/evidence.md, too")
    given = parser.parse_args(arguments)
    if given.splits < FEWEST:
        print(f"{given.splits} splits show nothing: at least {FEWEST}", file=sys.stderr)
        return 2
    try:
        folder = data.folder()
    except data.NoDataError as error:
        print(error, file=sys.stderr)
        return 2
    what, started = machine.describe(), time.monotonic()
    model = given.model or smollm2(lambda line: print(line, file=sys.stderr))
    setting = (
        str(folder),
        given.prompts,
        given.pairs,
        str(model),
        str(given.head),
        str(given.cache),
    )
    groups, pairs, _ = _material(*setting, workers=given.workers)
    print(f"({time.monotonic() - started:.0f} s so far)", file=sys.stderr)
    found = _run_all(setting, given.splits, given.workers)
    tables = [main_table(found, ARMS), questions_table(found)]
    tables[0].notes.insert(
        0,
        f"{len(groups)} prompts of AlpacaEval with {data.K} responses each, GPT-4's preference as "
        f"gold, in thirds by prompt: fit, align, held out; {len(pairs)} PandaLM pairs with a "
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


Setting = tuple[str, int, int, str, str, str]


@cache
def _material(
    folder: str, prompts: int, pairs: int, model: str, head: str, kept: str, *, workers: int
) -> tuple[Sequence[data.Group], Sequence[data.Pair], Mapping[data.Text, Embedded]]:
    groups = data.read_groups(Path(folder) / data.GROUPS_FILE, prompts)
    if len(groups) < 3:
        raise SystemExit(f"{len(groups)} prompts have {data.K} short responses: too few to split")
    known = [group.texts[0].prompt for group in groups]
    judged = data.read_pairs(Path(folder) / data.PAIRS_FILE, pairs, but=known)
    texts = [text for group in groups for text in group.texts]
    texts += [text for pair in judged for text in (pair.better, pair.worse)]
    return groups, judged, embed(texts, Path(model), Path(head), Path(kept), workers)


def _run_all(setting: Setting, splits: int, workers: int) -> Found:
    """Every arm on every split, a split and an arm at a time in each process."""
    jobs: list[tuple[Arm | None, int]] = [(arm, n) for n in range(splits) for arm in (None, *ARMS)]
    found: Found = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run, setting, arm, n): (arm, n) for arm, n in jobs}
        for future in track(
            as_completed(futures), "aligning", total=len(jobs), console=Console(stderr=True)
        ):
            arm, n = futures[future]
            found.setdefault(arm.name if arm else VANILLA, {})[n] = future.result()
    return found


def _run(setting: Setting, arm: Arm | None, n: int) -> Measured:
    torch.set_num_threads(1)
    study = _study(setting, n)
    return study.run(arm) if arm else study.vanilla()


@cache
def _study(setting: Setting, n: int) -> Study:
    groups, pairs, found = _material(*setting, workers=1)
    return Study(groups, pairs, found, data.split(groups, n), n)


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
