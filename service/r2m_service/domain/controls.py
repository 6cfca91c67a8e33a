"""Controls: shadow arms that learn the same labels from less than the live head has.

Each new outside label is asked of both *before* either learns from it (test, then train: Dawid
1984). One thing is not even: the policy optimises against the head alone, and seeks out what the
head gets wrong. So the difference leans against the head. People look at it after every step, so
its interval holds at all looks at once: the asymptotic confidence sequence of Waudby-Smith et al.
(arXiv 2103.06476, Theorem 2.2), Robbins' normal mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r2m_service.domain.method import ControlKind, Labels
from r2m_service.domain.runs import FeedbackSource

Verdict = Literal[
    "not_available", "too_few_pairs", "no_difference_yet", "feedback_pays", "control_is_better"
]

FEWEST_PAIRS = 30
"""Pairs before a verdict: the sequence is asymptotic."""
ERROR = 0.05
"""Chance that a control as good as the head is ever called otherwise, over all looks."""
TIGHTEST_AT = 200
"""Pairs at which the interval is as tight as it can be made."""
_RHO_SQUARED = (-2 * math.log(ERROR) + math.log(1 - 2 * math.log(ERROR))) / TIGHTEST_AT


def why_senseless(
    controls: Sequence[ControlKind], feedback: FeedbackSource, labels: Labels
) -> str | None:
    """A sentence where a run with that feedback and those labels could learn nothing from them."""
    if not controls:
        return None
    if feedback == "none":
        return (
            "controls tell whether hidden states pay; a run with feedback none attends to none, so "
            f"it takes no controls, got {', '.join(controls)}"
        )
    if feedback in controls:
        return (
            f"the run itself has feedback {feedback}: as a control that would be the same head "
            "again; shuffled and none are left"
        )
    if labels == "pseudo":
        return (
            "controls are judged by outside labels, and a run with labels pseudo takes none: with "
            "controls, labels are outside_first or outside_only"
        )
    return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Head and control on the same pairs, summed. Immutable.

    Attributes:
        pairs: how many.
        head, control: those each has right; a tie is half a pair.
        discordant: sum of the squared differences: a pair that one alone has right is 1.
        head_bt, control_bt: sums of −log σ(margin).
    """

    pairs: int = 0
    head: float = 0.0
    control: float = 0.0
    discordant: float = 0.0
    head_bt: float = 0.0
    control_bt: float = 0.0

    def add(self, head_margin: float, control_margin: float) -> Comparison:
        """With one pair more.

        Args:
            head_margin, control_margin: reward of the winner less that of the loser; finite.
        """
        head, control = _right(head_margin), _right(control_margin)
        return Comparison(
            self.pairs + 1,
            self.head + head,
            self.control + control,
            self.discordant + (head - control) ** 2,
            self.head_bt + _bradley_terry(head_margin),
            self.control_bt + _bradley_terry(control_margin),
        )

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.pairs + other.pairs,
            self.head + other.head,
            self.control + other.control,
            self.discordant + other.discordant,
            self.head_bt + other.head_bt,
            self.control_bt + other.control_bt,
        )

    @property
    def difference(self) -> float | None:
        """Of accuracies, head less control."""
        return (self.head - self.control) / self.pairs if self.pairs else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Around it, good at every look. None: no pairs."""
        n, difference = self.pairs, self.difference
        if difference is None:
            return None
        # Two pairs more, one for each side: the first few agreeing pairs are no certainty.
        mean = (self.head - self.control) / (n + 2)
        variance = (self.discordant + 2) / (n + 2) - mean**2
        mixed = n * _RHO_SQUARED + 1
        half = math.sqrt(variance * mixed / (n * n * _RHO_SQUARED) * math.log(mixed / ERROR**2))
        return max(difference - half, -1.0), min(difference + half, 1.0)

    @property
    def verdict(self) -> Verdict:
        """What the pairs say."""
        if self.interval is None or self.pairs < FEWEST_PAIRS:
            return "too_few_pairs"
        low, high = self.interval
        if low > 0:
            return "feedback_pays"
        return "control_is_better" if high < 0 else "no_difference_yet"


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _bradley_terry(margin: float) -> float:
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
