"""Which of the service's live signals tells an over-optimised run from a healthy one, and when.

A run is called by its gold alone, which no signal sees: *over-optimised* where it ends more than
`FALLEN` below its own peak, *healthy* where it ends within `HELD` of it; between the two, neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.report import Table
from lab.arms import SETS
from lab.jobs import Runs
from lab.outcomes import FALLEN, NOISE, SMOOTH, fall_from_peak, smooth
from lab.rlhf import Numbers
from lab.watches import (
    Watch,
    apart_from_vanilla,
    audited_accuracy,
    audited_gap,
    beyond,
    graded_fall,
    longer_is_better,
    rejected_in_a_row,
    rescored_gap,
)
from r2m.statistics import wilson
from r2m_service.domain.audit import ALARM, WARN

HELD = NOISE
FEWEST_HEALTHY = 12
AUDITS = (0.016, 0.0625, 0.125, 0.25, 1.0)
"""Shares of the groups whose samples are graded from outside, and judge (`judge_share`)."""

Kind = Literal["over-optimised", "healthy"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One way to be warned.

    Attributes:
        learners: whether only a head that learns has it.
    """

    name: str
    watch: Watch
    learners: bool = False


def kind_of(run: Numbers) -> Kind | None:
    """What became of a run, in the gold's eyes."""
    fall = fall_from_peak(run)
    if fall > FALLEN:
        return "over-optimised"
    return "healthy" if fall < HELD else None


def lost_by(run: Numbers, step: int) -> float:
    """Share of the whole loss that has been suffered at a step: 0 before the peak, 1 at the end."""
    gold = smooth(run["gold"].mean(1))
    top = int(gold.argmax())
    at = min(max(step - SMOOTH, 0), len(gold) - 1)
    if at <= top:
        return 0.0
    return float(np.clip((gold[top] - gold[at]) / (gold[top] - gold[-1]), 0.0, 1.0))


def signals() -> Iterator[Signal]:
    """All of them, the alerts' own thresholds first."""
    for share in AUDITS:
        for name, threshold in (("warn", WARN), ("alarm", ALARM)):
            yield Signal(
                f"audited gap, {share:.1%} of the groups graded, {name} at {threshold:g}",
                audited_gap(share, threshold),
            )
    for share in (0.0625, 0.125):
        yield Signal(
            f"the gap, first responses graded and rescored, then {share:.1%}, alarm at {ALARM:g} "
            "(not in the service)",
            rescored_gap(share, ALARM),
        )
    for share in (0.0625, 0.125):
        yield Signal(
            f"audited grades fall, {share:.1%} graded, alarm at {ALARM:g} (not in the service)",
            graded_fall(share, ALARM),
        )
    yield Signal(
        "accuracy < 0.55 on the last 16 graded groups, 12.5 % graded (the service: on anchors)",
        audited_accuracy(0.125, 0.55),
    )
    yield Signal("spread ratio > 2", beyond("spread_ratio", 2.0), learners=True)
    yield Signal(
        "rank correlation to version 0 < 0.8",
        beyond("rank_correlation", 0.8, below=True),
        learners=True,
    )
    yield Signal("three rejections in a row", rejected_in_a_row(3), learners=True)
    yield Signal("feedback gain > 0.5", beyond("feedback_gain", 0.5), learners=True)
    yield Signal("GRE < 1.6", beyond("gre", 1.6, below=True), learners=True)
    yield Signal(
        "correlation with the vanilla reward < 0.5",
        apart_from_vanilla(0.5),
        learners=True,
    )
    yield Signal("correlation with length > 0.5", longer_is_better(0.5))
    yield Signal("the policy's KL > 15 (not in the service)", beyond("kl", 15.0))


def called(runs: Runs, learners: bool) -> Mapping[Kind, list[tuple[Numbers, int]]]:
    """Runs by what became of them, with their seeds."""
    found: dict[Kind, list[tuple[Numbers, int]]] = {"over-optimised": [], "healthy": []}
    for seeds in runs.values():
        for seed, run in seeds.items():
            learns = bool(run["accepted"].any() or run["rejected"].any())
            kind = kind_of(run)
            if kind is not None and (learns or not learners):
                found[kind].append((run, seed))
    return found


def signals_tables(runs: Runs) -> list[Table]:
    """Two tables: whose reward model stands still, and whose head learns.

    Left out are the runs that nobody rewards, and those tuned to a learning rate.
    """
    ours = {name: seeds for name, seeds in runs.items() if name in _KNOWN}
    fixed = {name: seeds for name, seeds in ours.items() if _KNOWN[name].reward == "proxy"}
    learning = {name: seeds for name, seeds in ours.items() if name not in fixed}
    return [
        signals_table(fixed, name="signals", title="Signals, reward model standing still"),
        signals_table(learning, name="signals-learning", title="Signals, head learning"),
    ]


_KNOWN = {
    arm.name: arm
    for name, arms in SETS.items()
    if name != "tuning"
    for arm in arms
    if arm.reward != "labels"
}


def signals_table(runs: Runs, *, name: str, title: str) -> Table:
    """Each signal's hits, what they came too late for, and its false alarms."""
    table = Table(
        name, title, ["signal", "caught", "of the loss by then", "steps after the peak", "false"]
    )
    all_runs, learners = called(runs, False), called(runs, True)
    healthy = len(all_runs["healthy"])
    if healthy < FEWEST_HEALTHY:
        table.notes.append(
            f"{healthy} healthy runs say nothing about how often a signal is false: at least "
            f"{FEWEST_HEALTHY} are needed."
        )
        return table
    for signal in signals():
        of = learners if signal.learners else all_runs
        bad, good = of["over-optimised"], of["healthy"]
        if not bad or not good:
            continue
        hits = [(run, at) for run, seed in bad if (at := signal.watch(run, seed)) is not None]
        false = sum(signal.watch(run, seed) is not None for run, seed in good)
        lost = np.median([lost_by(run, at) for run, at in hits]) if hits else None
        late = np.median([at - _peak(run) for run, at in hits]) if hits else None
        table.rows.append(
            [
                signal.name,
                f"{len(hits)}/{len(bad)}",
                None if lost is None else f"{lost:.0%}",
                None if late is None else f"{late:+.0f}",
                _rate(false, len(good), len({seed for _, seed in good})),
            ]
        )
    bad, good = all_runs["over-optimised"], all_runs["healthy"]
    table.notes.append(
        f"{len(bad)} over-optimised runs (they end more than {FALLEN:g} below their peak), "
        f"{len(good)} healthy ones (within {HELD:g} of it), called by the gold alone. Medians over "
        "the runs that were caught; in brackets the 95 % interval (Wilson) of the share of false "
        "alarms, as if each seed were one run, since arms of a seed are kin. A signal that only a "
        "learning head has is asked of those alone."
    )
    table.notes.append(_by_arm(runs))
    return table


def _by_arm(runs: Runs) -> str:
    """Which healthy runs the alert's own signal is false in."""
    watch = audited_gap(0.125, ALARM)
    told: list[str] = []
    for arm, seeds in runs.items():
        good = [(run, seed) for seed, run in seeds.items() if kind_of(run) == "healthy"]
        if good:
            false = sum(watch(run, seed) is not None for run, seed in good)
            told.append(f"`{arm}` {false}/{len(good)}")
    return f"False at the gap, 12.5 % graded, alarm at {ALARM:g}, by arm: {', '.join(told)}."


def _peak(run: Numbers) -> int:
    return int(smooth(run["gold"].mean(1)).argmax()) + SMOOTH - 1


def _rate(false: int, count: int, seeds: int) -> str:
    low, high = wilson(false * seeds / count, seeds)
    return f"{false}/{count} ({low:.0%}-{high:.0%})"
