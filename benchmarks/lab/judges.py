"""What stands in for the gold where models are real: a better reward model with its server."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from r2m_client import Client, Label, Sample

TEXT = ("prompt", "response", "messages", "format")


class Judge(TrainerCallback):
    """Grades completions: those of every step for the log, the marked ones as outside labels.

    Args:
        client: of the judge's own server.
        run: whose marked samples get labels, on the server of `ours`; None: none.
    """

    def __init__(self, client: Client, ours: Client, run: str | None, name: str = "judge") -> None:
        self._client, self._ours, self._run = client, ours, run
        self.__name__ = name  # TRL logs it as rewards/judge/mean

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any
    ) -> list[float | None]:
        """TRL's reward function; its weight is zero."""
        return _graded(self._client, prompts, completions)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Label what waits; it is before R2M's own turn, so that the step's align has it."""
        if self._run is None:
            return
        waiting = self._ours.samples(self._run, waiting=True, limit=1000).samples
        graded = [
            Sample(one.id, **{key: one.text[key] for key in TEXT if key in one.text})
            for one in waiting
        ]
        if graded:
            scores = self._client.score(graded).scores
            labels = [
                Label(id=one.id, grade=one.reward, source="judge")
                for one in scores
                if one.reward is not None
            ]
            self._ours.add_labels(self._run, labels)


class Labels:
    """The labels themselves as the policy's reward, and no reward model: TRL's reward function.

    1 for the best of a labelled group, -1 for its worst in the judge's eyes, 0 for all else.

    Args:
        share: of the groups that are labelled, by a draw.
        generations: K, responses of a prompt, which TRL gives one after the other.
    """

    __name__ = "labels"

    def __init__(self, client: Client, *, share: float, generations: int, seed: int) -> None:
        self._client, self._share, self._generations = client, share, generations
        self._draw = random.Random(seed)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Rewards in the order of the completions."""
        grades = _graded(self._client, prompts, completions)
        found = [0.0] * len(grades)
        for begin in range(0, len(grades), self._generations):
            if self._draw.random() >= self._share:
                continue
            places = range(begin, min(begin + self._generations, len(grades)))
            known = [(grade, at) for at in places if (grade := grades[at]) is not None]
            if known and min(known)[0] < max(known)[0]:
                found[max(known)[1]], found[min(known)[1]] = 1.0, -1.0
        return found


def _graded(
    client: Client, prompts: Sequence[Any], completions: Sequence[Any]
) -> list[float | None]:
    pairs = [
        Sample(str(place), _text(prompt), _text(completion) or " ")
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    return [one.reward for one in client.score(pairs).scores]


def _text(turns: Any) -> str:
    """A prompt or completion of TRL's as plain text: of a conversation its last turn."""
    return turns if isinstance(turns, str) else str(turns[-1]["content"])
