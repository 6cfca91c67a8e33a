"""What rewards say of preferences: which completion is preferred, and how often that is right.

The rules are those of RewardBench and RewardBench 2 (allenai/reward-bench at 05a9005,
`rewardbench/utils.py`):

- one right completion of n: right where its reward is the highest; where k completions share the
  highest reward and it is one of them, it counts 1/k (a tie of a pair counts half);
- several right ones: right where each has a higher reward than every wrong one;
- the subset Ties has a score beside that (`ties_score`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r2m.statistics import sign_test, wilson
from r2m_client._results import Accuracy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Judged:
    """One row's rewards by one head, up to a constant of the row.

    Attributes:
        name: the row's.
        chosen, rejected: rewards of its right and of its wrong completions.
    """

    name: str
    chosen: Sequence[float]
    rejected: Sequence[float]

    @property
    def gap(self) -> float:
        """The worst right completion's reward less the best wrong one's."""
        return min(self.chosen) - max(self.rejected)

    @property
    def spread(self) -> float:
        """The best right completion's reward less the worst right one's."""
        return max(self.chosen) - min(self.chosen)

    @property
    def credit(self) -> float:
        """1: the right completion is preferred, 0: a wrong one, between them: a tie."""
        if len(self.chosen) > 1:
            return float(self.gap > 0)
        best = max(self.chosen[0], *self.rejected)
        return 1 / (1 + self.rejected.count(best)) if self.chosen[0] == best else 0.0


def accuracy(rows: Iterable[Judged], head: int | None, first: Sequence[Judged] | None) -> Accuracy:
    """How often a head prefers the right completion.

    Args:
        rows: by this head.
        head: its number; None: the reward model itself.
        first: the same rows by the head it is compared with; None: it is the first itself.
    """
    credits = [row.credit for row in rows]
    count, right = len(credits), math.fsum(credits)
    low, high = wilson(right, count)
    better = worse = p_value = None
    if first is not None:
        others = [row.credit for row in first]
        better = sum(a == 1 > b for a, b in zip(credits, others, strict=True))
        worse = sum(b == 1 > a for a, b in zip(credits, others, strict=True))
        p_value = sign_test(better, worse)
    return Accuracy(
        accuracy=right / count if count else 0.0,
        low=low,
        high=high,
        correct=sum(credit == 1 for credit in credits),
        ties=sum(0 < credit < 1 for credit in credits),
        head=head,
        better=better,
        worse=worse,
        p_value=p_value,
    )


def ties_score(rows: Iterable[Judged]) -> float | None:
    """RewardBench 2's score of its subset Ties; None where no prompt has both of its rows.

    A prompt has a row `ref:N` with one right completion and a row `tied:N` with several. The score
    is 0.3 · the accuracy on the tied rows + 0.3 · that on the reference rows + 0.2 · the share of
    prompts whose tied gap is above its spread + 0.2 · the share where the smaller of both gaps is
    + 0.01 · the mean of tanh(smaller gap / spread − 1), 0 where that is no number. A gap is the
    worst right completion's reward less the best wrong one's, the spread that of the tied row's
    right completions.
    """
    found: dict[str, dict[str, Judged]] = {"ref": {}, "tied": {}}
    for row in rows:
        kind, _, prompt = row.name.partition(":")
        if kind in found:
            found[kind][prompt] = row
    ref, tied = found["ref"], found["tied"]
    prompts = ref.keys() & tied.keys()
    if not prompts:
        return None

    def mean(values: Iterable[float]) -> float:
        numbers = list(values)
        return math.fsum(numbers) / len(numbers)

    smaller = {prompt: min(ref[prompt].gap, tied[prompt].gap) for prompt in prompts}
    return (
        0.3 * mean(row.gap > 0 for row in tied.values())
        + 0.3 * mean(row.gap > 0 for row in ref.values())
        + 0.2 * mean(tied[prompt].gap > tied[prompt].spread for prompt in prompts)
        + 0.2 * mean(smaller[prompt] > tied[prompt].spread for prompt in prompts)
        + 0.01 * mean(_closeness(smaller[prompt], tied[prompt].spread) for prompt in prompts)
    )


def _closeness(gap: float, spread: float) -> float:
    if spread == 0:
        return math.copysign(1.0, gap) if gap else 0.0
    return math.tanh(gap / spread - 1)
