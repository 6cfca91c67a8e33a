"""What a fake has in place of models: the functions of the test that made it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from r2m.errors import Code, Problem
from r2m_client._samples import Group, Sample

Verdict = Literal["accepted", "rejected", "undecided", "skipped", "frozen"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
Advice = Literal["ok", "warn", "stop"]
ADVICE: tuple[str, ...] = get_args(Advice)

Reward = Callable[[Sample, int], float]
Vanilla = Callable[[Sample], float]
VerdictOf = Callable[[int, Sequence[Group]], Verdict]
AdviceOn = Callable[[str], Advice]
CountTokens = Callable[[str], int]


@dataclass(slots=True)
class Backbone:
    """The frozen model's stand-in, and the heads' too; `FakeServer` documents the fields."""

    reward: Reward
    vanilla: Vanilla | None
    verdict: Verdict | VerdictOf
    fingerprint: str
    hidden_size: int
    max_length: int
    count_tokens: CountTokens
    advice: Advice | AdviceOn = "ok"

    def reward_of(self, sample: Sample, head: int) -> float:
        """A sample's reward by a version.

        Raises:
            Problem: reward_not_finite.
        """
        return _finite(self.reward(sample, head), "reward")

    def vanilla_of(self, sample: Sample) -> float:
        """The frozen model's reward; without a function for it version 0's, which ranks alike.

        Raises:
            Problem: reward_not_finite.
        """
        found = self.reward(sample, 0) if self.vanilla is None else self.vanilla(sample)
        return _finite(found, "vanilla reward")

    def verdict_on(self, step: int, groups: Sequence[Group]) -> str:
        """What the test wants of a candidate.

        Raises:
            ValueError: it is no verdict.
        """
        found = self.verdict(step, groups) if callable(self.verdict) else self.verdict
        return known_verdict(found)

    def advice_on(self, run: str) -> str:
        """What the test wants the audited gap of a run to say.

        Raises:
            ValueError: it is no advice.
        """
        found = self.advice(run) if callable(self.advice) else self.advice
        return known_advice(found)


def known_advice(found: str) -> str:
    """The advice itself.

    Raises:
        ValueError: it is none.
    """
    if found not in ADVICE:
        raise ValueError(f"advice {found!r} is not one of {', '.join(ADVICE)}")
    return found


def known_verdict(found: str) -> str:
    """The verdict itself.

    Raises:
        ValueError: it is none.
    """
    if found not in VERDICTS:
        raise ValueError(f"verdict {found!r} is not one of {', '.join(VERDICTS)}")
    return found


def count_words(text: str) -> int:
    """Tokens, where nobody says how to count them."""
    return len(text.split())


def _finite(value: float, name: str) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise Problem(Code.REWARD_NOT_FINITE, f"the {name} of this sample is {value}")
    return value
