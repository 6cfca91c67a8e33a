"""Runs the tables: `make bench`, or `PYTHONPATH=benchmarks python -m bench --help`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import machine, report
from bench.measure import progress
from bench.scale import FULL, TINY, Scale

TABLES = ("attention", "throughput", "feedback", "align", "controls", "latency", "swap")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run tables; 1 where one of them could not be made."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE")
    parser.add_argument("--tiny", action="store_true", help="only see whether it works")
    parser.add_argument("--no-smollm2", action="store_true", help="the small model alone")
    parser.add_argument("--gpu", action="store_true", help="the GPU's table instead")
    parser.add_argument("--rounds", type=int, help="interleaved ones; medians are over them")
    parser.add_argument("--out", type=Path, default=report.OUT)
    given = parser.parse_args(arguments)
    scale = TINY if given.tiny else FULL
    if given.rounds:
        scale = replace(scale, rounds=given.rounds)
    if given.no_smollm2:
        scale = replace(scale, smollm2=False)
    if given.gpu:
        return run(("gpu",), scale, given.out)
    return run(given.tables, scale, given.out)


def run(names: Sequence[str], scale: Scale, out: Path) -> int:
    """Make tables one after the other; each is printed and saved as soon as it is whole."""
    what, started, failed = machine.describe(), time.monotonic(), list[str]()
    print(report.machine_line(what), file=sys.stderr)
    for place, name in enumerate(names):
        say = progress(f"{place + 1}/{len(names)} {name}")
        try:
            # Each pulls in what it alone needs.
            made: report.Table = importlib.import_module(f"bench.{name}").table(scale, say)
        except Exception:
            failed.append(name)
            traceback.print_exc()
            continue
        print(made.text(), flush=True)
        path = report.save([made], what, out)
        print(f"({time.monotonic() - started:.0f} s in all so far; {path})", flush=True)
    if failed:
        print(f"not made: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
