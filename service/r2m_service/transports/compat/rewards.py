"""From a trainer's texts to its rewards, or to the one error that it can be told.

No dialect has a place for an error beside a number: a call gets all its rewards, or none. Nor has
any of them ids, so a text's hash names it, and a prompt's its group: a text that comes twice is one
sample, and whoever labels samples finds those of one prompt together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r2m.errors import Code, Problem
from r2m_service.application.contract import SampleIn, ScoreRequest, VanillaRequest
from r2m_service.application.parsing import parse
from r2m_service.application.samples import prompt_hash, text_hash
from r2m_service.transports.interface import Application

_UNNAMED = "-"


@dataclass(frozen=True, slots=True)
class Reward:
    """One text's.

    Attributes:
        tokens: that the reward model read.
        truncated: tokens that were cut off.
    """

    reward: float
    vanilla_reward: float
    tokens: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Rewards:
    """All of a call's, in the order of its texts; one head made them.

    Attributes:
        head, omega: whose, and its ω; None: the frozen reward model's.
    """

    each: list[Reward]
    head: int | None
    omega: float | None


def raw(prompt: str, response: str, *, special: bool | None = None) -> SampleIn:
    """A text, joined as it is; an empty prompt: where the response starts is unknown.

    Args:
        special: `special_tokens` of the sample.
    """
    return SampleIn(
        id=_UNNAMED, prompt=prompt, response=response, format="raw", special_tokens=special
    )


def decoded(prompt: str, response: str) -> SampleIn:
    """A text that was decoded from tokens, as trainers' own servers read it.

    It brings its special tokens, so none are added; what is too long is cut on the right.
    """
    return raw(prompt, response, special=False).model_copy(update={"truncation": "right"})


def of_ids(ids: Sequence[int]) -> SampleIn:
    """A text that is tokens already."""
    return SampleIn(id=_UNNAMED, token_ids=list(ids))


def conversation(turns: Sequence[Mapping[str, Any]], tools: str | None = None) -> SampleIn:
    """Turns for the chat template.

    Raises:
        Problem: invalid_request, naming what is wrong as `messages[...]`.
    """
    return parse(SampleIn, {"id": _UNNAMED, "messages": list(turns), "tools": tools})


def named(samples: Sequence[SampleIn]) -> list[SampleIn]:
    """Samples as `raw`, `of_ids` and `conversation` make them, with their ids and groups."""
    return [
        one.model_copy(
            update={
                "id": text_hash(one),
                "group": prompt_hash(one) if one.prompt or one.messages else "",
            }
        )
        for one in samples
    ]


async def rewards_of(
    application: Application,
    run: str | None,
    samples: Sequence[SampleIn],
    place: Callable[[int], str],
) -> Rewards:
    """Rewards by a run's live head, or by the frozen reward model where no run is named.

    Args:
        samples: as `named` makes them.
        place: where in the request the text of a number stands, for errors.

    Raises:
        Problem: as score's; and the first one of a sample that has no reward.
    """
    once = list({sample.id: sample for sample in samples}.values())
    request = VanillaRequest(samples=once) if run is None else ScoreRequest(samples=once)
    answer = await application.score(run, request)
    found = {score.id: score for score in answer.scores}
    each: list[Reward] = []
    for number, sample in enumerate(samples):
        score = found[sample.id]
        if score.error is not None:
            raise _told(Code(score.error.code), score.error.message, run, place(number))
        assert score.reward is not None, "a score has a reward or an error"
        vanilla = score.reward if score.vanilla_reward is None else score.vanilla_reward
        each.append(Reward(score.reward, vanilla, score.tokens or 0, score.truncated or 0))
    return Rewards(each, answer.head, answer.omega)


def _told(code: Code, message: str, run: str | None, field: str) -> Problem:
    if code is Code.FEEDBACK_MISSING:
        message = (
            f"run {run!r} attends to its policy's hidden states, which this call cannot bring: "
            "name a run with feedback backbone or none (--compat-run, or /runs/NAME in the URL), "
            f"or score with /v1/runs/{run}/score"
        )
    return Problem(code, f"{field} has no reward: {message}", field=field)
