"""Ways to be warned of over-optimisation: the service's own live signals, and some that it lacks.

Each looks at a run step by step, and at nothing that is still to come.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lab.outcomes import pair_accuracy
from lab.rlhf import FIRST_STEPS, GROUPS, K, Numbers
from r2m_service.application.tally import MovingPair
from r2m_service.domain.audit import BASELINE, WINDOW, AuditState
from r2m_service.domain.audit import K as K_CUSUM
from r2m_service.domain.evidence import length_correlation

EIGHT = 8
AUDITED_PAIRS = 16
"""Groups that the audited accuracy is taken over."""
MEAN = 5
"""Steps of a running mean of what the service measures anew at every step."""

Watch = Callable[[Numbers, int], int | None]
"""The step at which a signal first fires in a run with a seed; None: never."""


def audited_gap(share: float, threshold: float) -> Watch:
    """The service's CUSUM, on the samples of a random share of the groups."""

    def watch(run: Numbers, seed: int) -> int | None:
        draw, state = np.random.default_rng(seed), AuditState()
        for step, (reward_N, gold_N) in enumerate(zip(run["reward"], run["gold"], strict=True)):
            for group in np.flatnonzero(draw.random(GROUPS) < share):
                at = slice(group * K, (group + 1) * K)
                for reward, gold in zip(reward_N[at], gold_N[at], strict=True):
                    state = state.add(float(reward), float(gold))
            if state.cusum >= threshold:
                return step
        return None

    return watch


def rescored_gap(share: float, threshold: float) -> Watch:
    """Not in the service: the same gap from the first steps' responses, all of them graded.

    Their rewards are those that the head at hand gives them, so that its own change of scale is no
    gap: what is left is how much further than the grades the rewards of *new* responses went.
    """

    def watch(run: Numbers, seed: int) -> int | None:
        draw = np.random.default_rng(seed)
        first = run["gold"][:FIRST_STEPS]
        gaps: list[float] = []
        cusum = 0.0
        for step in range(FIRST_STEPS, len(run["gold"])):
            mean, spread = run["first_mean"][step], max(float(run["first_spread"][step]), 1e-6)
            for group in np.flatnonzero(draw.random(GROUPS) < share):
                at = slice(group * K, (group + 1) * K)
                reward_K = (run["reward"][step][at] - mean) / spread
                grade_K = (run["gold"][step][at] - first.mean()) / max(float(first.std()), 1e-6)
                gaps += (reward_K - grade_K).tolist()
            while len(gaps) >= WINDOW:
                cusum = max(0.0, cusum + float(np.mean(gaps[:WINDOW])) - K_CUSUM)
                del gaps[:WINDOW]
            if cusum >= threshold:
                return step
        return None

    return watch


def graded_fall(share: float, threshold: float) -> Watch:
    """Not in the service: a CUSUM of how far the grades lie below their own best so far.

    In standard deviations of the first `BASELINE` grades, by windows of `WINDOW`; the best is that
    of a mean of eight windows. It asks nothing of the reward.
    """

    def watch(run: Numbers, seed: int) -> int | None:
        draw = np.random.default_rng(seed)
        grades: list[float] = []
        means: list[float] = []
        best = cusum = 0.0
        for step, gold_N in enumerate(run["gold"]):
            for group in np.flatnonzero(draw.random(GROUPS) < share):
                grades += gold_N[group * K : (group + 1) * K].tolist()
            first = np.array(grades[:BASELINE])
            while len(grades) >= BASELINE + WINDOW * (len(means) + 1):
                begin = BASELINE + WINDOW * len(means)
                now = float(np.mean(grades[begin : begin + WINDOW]) - first.mean())
                means.append(now / max(float(first.std()), 1e-6))
                if len(means) >= EIGHT:
                    best = max(best, float(np.mean(means[-EIGHT:])))
                cusum = max(0.0, cusum + best - means[-1] - K_CUSUM)
            if cusum >= threshold:
                return step
        return None

    return watch


def audited_accuracy(share: float, threshold: float) -> Watch:
    """The reward's pair accuracy over the last audited groups."""

    def watch(run: Numbers, seed: int) -> int | None:
        draw = np.random.default_rng(seed)
        reward: list[np.ndarray] = []
        gold: list[np.ndarray] = []
        for step, (reward_N, gold_N) in enumerate(zip(run["reward"], run["gold"], strict=True)):
            for group in np.flatnonzero(draw.random(GROUPS) < share):
                at = slice(group * K, (group + 1) * K)
                reward.append(reward_N[at])
                gold.append(gold_N[at])
            if len(reward) < AUDITED_PAIRS:
                continue
            # pair_accuracy takes whole steps; here each row is one group.
            told = [
                pair_accuracy(np.tile(r, GROUPS)[None], np.tile(g, GROUPS)[None])
                for r, g in zip(reward[-AUDITED_PAIRS:], gold[-AUDITED_PAIRS:], strict=True)
            ]
            known = [one for one in told if not np.isnan(one)]
            if known and np.mean(known) < threshold:
                return step
        return None

    return watch


def beyond(key: str, threshold: float, *, below: bool = False) -> Watch:
    """A number of a step, as a running mean."""

    def watch(run: Numbers, _: int) -> int | None:
        return _first(run[key], threshold, below)

    return watch


def _first(values: np.ndarray, threshold: float, below: bool = False) -> int | None:
    known = np.flatnonzero(~np.isnan(values))
    if len(known) == 0:
        return None
    # A step without labels measures nothing: what was known before it stands.
    filled = values[known[np.searchsorted(known, np.arange(known[0], len(values)), "right") - 1]]
    if len(filled) < MEAN:
        return None
    mean = np.convolve(filled, np.ones(MEAN) / MEAN, "valid")
    fires = np.flatnonzero(mean < threshold if below else mean > threshold)
    return int(known[0] + fires[0]) + MEAN - 1 if len(fires) else None


def apart_from_vanilla(threshold: float) -> Watch:
    """The service's moving correlation of the reward with the frozen model's is below."""

    def watch(run: Numbers, _: int) -> int | None:
        pair = MovingPair()
        for step, rewards in enumerate(zip(run["reward"], run["vanilla"], strict=True)):
            for ours, theirs in zip(*(row.tolist() for row in rewards), strict=True):
                pair.add(ours, theirs)
            if pair.correlation is not None and pair.correlation < threshold:
                return step
        return None

    return watch


def longer_is_better(threshold: float) -> Watch:
    """The service's correlation of reward and length within groups is above."""

    def watch(run: Numbers, _: int) -> int | None:
        found = [
            length_correlation(
                reward_N.reshape(GROUPS, K).tolist(), length_N.reshape(GROUPS, K).tolist()
            )
            for reward_N, length_N in zip(run["reward"], run["length"], strict=True)
        ]
        return _first(np.array([np.nan if one is None else one for one in found]), threshold)

    return watch


def rejected_in_a_row(count: int) -> Watch:
    """As the alert has it."""

    def watch(run: Numbers, _: int) -> int | None:
        row = 0
        for step, rejected in enumerate(run["rejected"]):
            row = row + 1 if rejected else 0
            if row >= count:
                return step
        return None

    return watch
