"""The sets of arms, run one after the other, and the tables that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import Table
from lab import jobs, shadows, tuning
from lab.jobs import Runs
from lab.outcomes import Outcomes, outcomes, why_it_shows_nothing
from lab.questions import TUNED_QUESTIONS, WEAK_QUESTIONS, questions_table
from lab.signals import signals_tables
from lab.tables import main_table, sweep_table

SHADOWS = "shadows"
WEAK = "with a reward model whose backbone knows little of the language"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        counts: seeds of each set, `core` first.
        first: the first seed.
    """

    counts: Mapping[str, int]
    first: int
    steps: int
    workers: int
    out: Path


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it."""

    runs: Runs
    found: Outcomes
    tables: Sequence[Table]


class ShowsNothingError(Exception):
    """Why there is nothing to print, in sentences."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def study(plan: Plan) -> Made:
    """Run what is not there yet.

    Raises:
        ShowsNothingError: as soon as it is known.
    """
    planned: list[jobs.Job] = []
    nothing: list[str] = []

    def make(work: Sequence[jobs.Job]) -> Runs:
        jobs.run_all(work, plan.out, plan.workers)
        planned.extend(work)
        return jobs.read(work, plan.out)

    counts = plan.counts
    for name, seeds in counts.items():
        if name in (SHADOWS, "tuning"):
            continue
        runs = make(list(jobs.plan([name], seeds, plan.steps, plan.first)))
        if name == "core" and (reasons := why_it_shows_nothing(runs, plan.steps)):
            raise ShowsNothingError(reasons)
        if name == "weak":
            nothing = why_it_shows_nothing(runs, plan.steps, "weak-frozen")
    found = outcomes(jobs.read(planned, plan.out))
    if "tuning" in counts:
        found = _tuned(plan, found, make)
    runs = jobs.read(planned, plan.out)
    return Made(runs, found, tables_of(plan, runs, found, nothing))


def _tuned(plan: Plan, found: Outcomes, make: jobs.Make) -> Outcomes:
    first = plan.first + tuning.FIRST_SEED
    tried = outcomes(make(list(jobs.plan(["tuning"], plan.counts["tuning"], plan.steps, first))))
    seeds = min(plan.counts["core"], tuning.TUNED_SEEDS)
    then = outcomes(make(list(tuning.plan(tried, seeds, plan.steps, plan.first))))
    return tuning.with_own({**found, **tried, **then}, seeds, plan.first)


def tables_of(
    plan: Plan, runs: Runs, found: Outcomes, weak_nothing: Sequence[str] = ()
) -> list[Table]:
    """All tables of the planned sets.

    Args:
        weak_nothing: why the weak reward model shows nothing: said in the place of its tables.
    """
    counts = plan.counts
    tables = [main_table(found, [one for one in ("core", "more", "doubts") if one in counts])]
    tables.append(questions_table(found))
    if "tuning" in counts:
        tables.append(tuning.rates_table(found))
        title = "Questions, each arm at its best learning rate"
        tables.append(questions_table(found, TUNED_QUESTIONS, name="tuned", title=title))
    if weak_nothing:
        tables.append(Table("weak-arms", f"Nothing is shown {WEAK}", ["why"]))
        tables[-1].rows += [[reason] for reason in weak_nothing]
    elif "weak" in counts:
        tables.append(main_table(found, ["weak"], name="weak-arms", title=f"Arms, {WEAK}"))
        title = f"Questions, {WEAK}"
        tables.append(questions_table(found, WEAK_QUESTIONS, name="weak", title=title))
    if SHADOWS in counts:
        tables.append(
            shadows.table(
                range(plan.first, plan.first + counts[SHADOWS]),
                plan.steps,
                plan.out,
                plan.workers,
                found,
            )
        )
    if "sweeps" in counts:
        tables.append(sweep_table(found))
    if "healthy" in counts:
        tables.extend(signals_tables(runs))
    return tables
