"""What a run came to, in a few numbers; and whether a lab of such runs shows anything at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lab.jobs import Runs
from lab.rlhf import GROUPS, K, Numbers
from lab.stats import FEWEST, mean_of

SMOOTH = 10
"""Steps of a running mean: a step's 64 golds alone are noise."""
KL_LEVELS = (6.0, 15.0)
"""Where arms are compared at the same distance from the first policy: early, and where the frozen
reward model has begun to mislead."""
NOISE = 0.5
"""How far below its own peak a run may end that lost nothing: the peak is the best of many."""
FALLEN = 1.0
"""How far below it a run has been over-optimised."""
SHORTEST = 120
"""Steps below which no policy has gone far enough to be misled."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run's.

    Attributes:
        peak, final: highest and last gold, both of running means.
        at_kl: gold where the policy first was that far away; None: it never was.
        accuracy: share of a group's pairs that the reward orders as the gold does, last steps.
        kl: at the end.
        labels: groups that were labelled.
        start_accuracy: of the reward model it begins with, on pairs of people's responses.
        ahead: how far standardised rewards have run ahead of the standardised gold by the end.
    """

    peak: float
    final: float
    at_kl: Mapping[float, float | None]
    accuracy: float
    kl: float
    labels: int
    ahead: float
    start_accuracy: float = float("nan")


def smooth(values: np.ndarray) -> np.ndarray:
    """Running means over `SMOOTH` steps; the first is that of the first ten."""
    return np.convolve(values, np.ones(SMOOTH) / SMOOTH, "valid")


def outcome(run: Numbers) -> Outcome:
    """The outcome of one run."""
    gold, kl = smooth(run["gold"].mean(1)), smooth(run["kl"])
    at_kl: dict[float, float | None] = {}
    for level in KL_LEVELS:
        reached = np.flatnonzero(kl >= level)
        at_kl[level] = float(gold[reached[0]]) if len(reached) else None
    return Outcome(
        peak=float(gold.max()),
        final=float(gold[-1]),
        at_kl=at_kl,
        accuracy=pair_accuracy(run["reward"][-2 * SMOOTH :], run["gold"][-2 * SMOOTH :]),
        kl=float(kl[-1]),
        labels=int(run["labels"].sum()),
        ahead=_gain(run["reward"]) - _gain(run["gold"]),
        start_accuracy=float(run.get("proxy_accuracy", np.nan)),
    )


def _gain(values: np.ndarray) -> float:
    """From the first steps to the last, in standard deviations of the first."""
    first = values[:SMOOTH]
    return float((values[-SMOOTH:].mean() - first.mean()) / max(float(first.std()), 1e-6))


def pair_accuracy(reward: np.ndarray, gold: np.ndarray) -> float:
    """Share of pairs within groups that both order alike; equal rewards count half.

    Args:
        reward, gold: (steps, 64).
    """
    r, g = (one.reshape(-1, GROUPS, K) for one in (reward, gold))
    ahead_r = np.sign(r[..., :, None] - r[..., None, :])
    ahead_g = np.sign(g[..., :, None] - g[..., None, :])
    told = ahead_g != 0
    if not told.any():
        return float("nan")
    return float(((1 + ahead_r * ahead_g) / 2)[told].mean())


Outcomes = Mapping[str, Mapping[int, Outcome]]
"""By arm and seed."""


def outcomes(runs: Runs) -> Outcomes:
    """Of all runs."""
    return {arm: {seed: outcome(run) for seed, run in seeds.items()} for arm, seeds in runs.items()}


def fall_from_peak(run: Numbers) -> float:
    """Gold lost from a run's best steps to its last; noise alone is up to `NOISE`."""
    gold = smooth(run["gold"].mean(1))
    return float(gold.max() - gold[-1])


def why_it_shows_nothing(runs: Runs, steps: int, frozen: str = "frozen") -> list[str]:
    """Sentences; none where the frozen reward model was over-optimised for all to see.

    Args:
        frozen: the arm that it rewards.
    """
    found: list[str] = []
    seeds = list(runs.get(frozen, {}).values())
    if len(seeds) < FEWEST:
        return [
            f"{len(seeds)} seeds: at least {FEWEST} are needed before an interval says anything"
        ]
    if steps < SHORTEST:
        found.append(
            f"{steps} steps: a policy is misled only after it has moved, which takes at least "
            f"{SHORTEST}"
        )
    falls = [fall_from_peak(run) for run in seeds]
    misled = sum(fall > FALLEN for fall in falls)
    if 2 * misled <= len(falls):
        found.append(
            f"{frozen}: the reward model is not over-optimised: the gold ends more than {FALLEN:g} "
            f"below its peak in {misled} of {len(falls)} seeds, more than half are asked for; "
            "there is nothing that an arm could be better at"
        )
    ahead = mean_of([outcome(run).ahead for run in seeds])
    if ahead.low <= 0.5:
        found.append(
            f"{frozen}: the reward model's rewards do not run ahead of the gold: by "
            f"{ahead.shown()} standard deviations at the end, at least 0.5 are asked for"
        )
    return found
