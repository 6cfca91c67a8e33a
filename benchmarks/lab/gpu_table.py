"""Arms of `lab.gpu` side by side: what the judge says at the peak, at the end, at equal KL.

PYTHONPATH=benchmarks python -m lab.gpu_table out/lab/gpu
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.report import Cell, Table
from lab.stats import FEWEST, Mean, TooFewError, paired
from lab.tables import cell

WITNESSES = ("rewards/eval_judge/mean", "rewards/judge/mean")
"""The judge that no arm learns from, where there is one."""
FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Run:
    """One run's judge and KL, as running means over a tenth of its steps."""

    judge: np.ndarray
    kl: np.ndarray

    @property
    def peak(self) -> float:
        """The judge's highest."""
        return float(self.judge.max())

    @property
    def final(self) -> float:
        """The judge's last."""
        return float(self.judge[-1])

    def at(self, kl: float) -> float:
        """The judge's where the policy first was that far away."""
        return float(self.judge[np.flatnonzero(self.kl >= kl)[0]])


Runs = Mapping[str, Mapping[int, Run]]
"""By arm and seed."""


class NothingError(RuntimeError):
    """Why there is no table, in one line."""


def read(folder: Path) -> Runs:
    """All runs below a folder.

    Raises:
        NothingError: there are none, or one of them cannot be read.
    """
    found: dict[str, dict[int, Run]] = {}
    for path in sorted(folder.glob("*/steps.jsonl")):
        arm, _, seed = path.parent.name.rpartition("-")
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            name = next(one for one in WITNESSES if one in rows[0])
            numbers = np.array([[row[name], row["kl"]] for row in rows], float)
            found.setdefault(arm, {})[int(seed)] = _run(numbers)
        except (ValueError, KeyError, IndexError, StopIteration) as error:
            raise NothingError(
                f"{path}: it should have `kl` and {' or '.join(WITNESSES)} in every line"
            ) from error
    if not found:
        raise NothingError(f"{folder} has no ARM-SEED/steps.jsonl: run lab.gpu first")
    return found


def _run(numbers: np.ndarray) -> Run:
    width = max(1, len(numbers) // 10)
    kernel = np.ones(width) / width
    return Run(*(np.convolve(column, kernel, "valid") for column in numbers.T))


def table_of(runs: Runs) -> Table:
    """One row an arm, with its difference to the frozen reward model's seed by seed."""
    level = min(float(run.kl.max()) for seeds in runs.values() for run in seeds.values())
    table = Table(
        "gpu",
        "Real models: what the judge says",
        ["arm", "seeds", "peak", "final", f"at KL {level:.3g}", "final KL", "final − frozen",
         f"at KL {level:.3g} − frozen"],
    )  # fmt: skip
    for arm, seeds in sorted(runs.items(), key=lambda one: (one[0] != FROZEN, one[0])):
        ours = list(seeds.values())
        table.rows.append(
            [
                arm,
                len(ours),
                cell([one.peak for one in ours]),
                cell([one.final for one in ours]),
                cell([one.at(level) for one in ours]),
                cell([float(one.kl[-1]) for one in ours], 3),
                *(_apart(runs, arm, at) for at in (None, level)),
            ]
        )
    table.notes.append(
        "Running means over a tenth of the steps; ± is half a 95 % interval over seeds (Student), "
        f"of at least {FEWEST}. Equal KL: the furthest that all runs got."
    )
    table.notes += _why_nothing(runs)
    return table


def _apart(runs: Runs, arm: str, level: float | None) -> Cell:
    if arm == FROZEN or FROZEN not in runs:
        return None
    seeds = sorted(runs[arm].keys() & runs[FROZEN].keys())
    ours, theirs = (
        [runs[of][seed].final if level is None else runs[of][seed].at(level) for seed in seeds]
        for of in (arm, FROZEN)
    )
    mean = _paired(ours, theirs)
    return f"{mean.shown()} ({mean.says})" if mean else f"too few seeds ({len(seeds)})"


def _why_nothing(runs: Runs) -> list[str]:
    if FROZEN not in runs:
        return ["**No frozen arm**: without it nothing can be said to be better."]
    frozen = list(runs[FROZEN].values())
    fall = _paired([one.peak for one in frozen], [one.final for one in frozen])
    if fall is None:
        return [f"**{len(frozen)} seeds of the frozen arm show nothing**: at least {FEWEST}."]
    noise = float(np.mean([np.diff(one.judge).std() for one in frozen]))
    if fall.low <= noise:
        return [
            "**The frozen reward model was not over-optimised**: the judge ends "
            f"{fall.shown()} below its peak. There is nothing that an arm could be better at."
        ]
    return []


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> Mean | None:
    try:
        return paired(ours, theirs)
    except TooFewError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and keep it beside the runs; 2 where there is none."""
    parser = argparse.ArgumentParser(prog="lab.gpu_table", description=__doc__)
    parser.add_argument("folder", type=Path, help="what lab.gpu had as --out")
    folder: Path = parser.parse_args(arguments).folder
    try:
        table = table_of(read(folder))
    except NothingError as error:
        print(error, file=sys.stderr)
        return 2
    print(table.text())
    (folder / "table.md").write_text(table.markdown() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
