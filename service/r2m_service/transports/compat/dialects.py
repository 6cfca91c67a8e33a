"""Each trainer's form: its request as samples, its rewards as an answer."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel

from r2m.errors import Code, Problem
from r2m_service.application.contract import SampleIn
from r2m_service.application.parsing import excerpt
from r2m_service.transports.compat.conversation import chat_tools, responses_turns, turn
from r2m_service.transports.compat.messages import (
    ClassifyAnswer,
    ClassifyRequest,
    ClassOut,
    EmbeddingOut,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    GetRewardAnswer,
    GetRewardRequest,
    SlimeRequest,
    UsageOut,
    VerifyRequest,
    example_of,
)
from r2m_service.transports.compat.rewards import Rewards, conversation, of_ids, raw

M = TypeVar("M", bound=BaseModel)
Name = Callable[[], str]
"""Of the reward model; asked only where an answer brings it."""


@dataclass(frozen=True, slots=True)
class Dialect(Generic[M]):
    """One way to ask for rewards.

    Attributes:
        path: where its callers look for it.
        name: of the operation.
        summary: one line.
        request: the body.
        samples: the body's texts.
        answer: the answer, of the body, its rewards, and who knows the reward model's name.
        place: where in the body the text of a number stands.
        example: of an answer.
        codes: errors beside those of all dialects.
    """

    path: str
    name: str
    summary: str
    request: type[M]
    samples: Callable[[M], list[SampleIn]]
    answer: Callable[[M, Rewards, Name], object]
    place: Callable[[int], str]
    example: object
    codes: tuple[Code, ...] = ()


def openrlhf_samples(request: GetRewardRequest) -> list[SampleIn]:
    """Queries, split where their prompts say so.

    Raises:
        Problem: invalid_request: there are prompts, and not one a query.
    """
    prompts = request.prompts or [""] * len(request.query)
    if len(prompts) != len(request.query):
        raise Problem(
            Code.INVALID_REQUEST,
            f"prompts has {len(prompts)} entries, query {len(request.query)}: one each",
            field="prompts",
        )
    return [_split(*both) for both in zip(request.query, prompts, strict=True)]


def _split(query: str, prompt: str) -> SampleIn:
    # A query was decoded from tokens, and need not start with its prompt letter by letter.
    # Nothing behind its prompt is an empty response: run or server say what becomes of it.
    if prompt and query.startswith(prompt):
        return raw(prompt, query[len(prompt) :])
    return raw("", query)


def openrlhf_answer(request: GetRewardRequest, rewards: Rewards, model: Name) -> GetRewardAnswer:
    """Numbers by name; the names depend on the run alone, as OpenRLHF joins them in batches."""
    numbers = [one.reward for one in rewards.each]
    logs: dict[str, list[float]] = {}
    if rewards.each:
        logs["vanilla_reward"] = [one.vanilla_reward for one in rewards.each]
        logs["tokens"] = [one.tokens for one in rewards.each]
        for name, value in (("head", rewards.head), ("omega", rewards.omega)):
            if value is not None:
                logs[name] = [value] * len(numbers)
    return GetRewardAnswer(rewards=numbers, scores=numbers, extra_logs=logs)


def slime_samples(request: SlimeRequest) -> list[SampleIn]:
    """One sample; a prompt of turns goes through the chat template.

    Raises:
        Problem: invalid_request, for turns that are none.
    """
    if isinstance(request.prompt, str):
        return [raw(request.prompt, request.response)]
    turns = [turn(one) for one in request.prompt]
    return [conversation([*turns, {"role": "assistant", "content": request.response}])]


def slime_answer(request: SlimeRequest, rewards: Rewards, model: Name) -> float:
    """The whole body is the reward."""
    return rewards.each[0].reward


def input_samples(given: str | Sequence[Any]) -> list[SampleIn]:
    """One text or several; or token ids, of one or several."""
    if isinstance(given, str):
        return [raw("", given)]
    if given and isinstance(given[0], int):
        return [of_ids(cast("Sequence[int]", given))]
    return [raw("", one) if isinstance(one, str) else of_ids(one) for one in given]


def classify_samples(request: ClassifyRequest) -> list[SampleIn]:
    """The texts of vLLM's `input`, or of SGLang's `text`.

    Raises:
        Problem: invalid_request: neither or both, or an activation is asked for.
    """
    if (request.input is None) == (request.text is None):
        raise Problem(Code.INVALID_REQUEST, "give input, or text", field="input")
    if request.use_activation or request.activation:
        raise Problem(
            Code.INVALID_REQUEST,
            "rewards are raw here, no activation is applied: send use_activation false",
            field="use_activation",
        )
    given = request.text if request.input is None else request.input
    return input_samples(cast("str | Sequence[Any]", given))


def classify_answer(request: ClassifyRequest, rewards: Rewards, model: Name) -> object:
    """vLLM's object; to `text`, SGLang's list, or its one entry where one text was sent."""
    if request.text is not None:
        each = [
            {"embedding": [one.reward], "meta_info": {"prompt_tokens": one.tokens}}
            for one in rewards.each
        ]
        return each[0] if isinstance(request.text, str) else each
    return ClassifyAnswer(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model or model(),
        data=[ClassOut(index=n, probs=[one.reward]) for n, one in enumerate(rewards.each)],
        usage=_usage(rewards),
    )


def embeddings_samples(request: EmbeddingsRequest) -> list[SampleIn]:
    """Texts, or token ids.

    Raises:
        Problem: invalid_request, for an encoding of numbers that is neither of the two.
    """
    if request.encoding_format not in ("float", "base64"):
        raise Problem(
            Code.INVALID_REQUEST,
            f"encoding_format is float or base64, got {excerpt(request.encoding_format)}",
            field="encoding_format",
        )
    return input_samples(request.input)


def embeddings_answer(
    request: EmbeddingsRequest, rewards: Rewards, model: Name
) -> EmbeddingsAnswer:
    """SGLang's object: each vector has the reward alone."""
    packed = request.encoding_format == "base64"
    return EmbeddingsAnswer(
        data=[
            EmbeddingOut(index=n, embedding=_packed(one.reward) if packed else [one.reward])
            for n, one in enumerate(rewards.each)
        ],
        model=request.model or model(),
        usage=_usage(rewards),
    )


def _packed(reward: float) -> str:
    return base64.b64encode(struct.pack("<f", reward)).decode()


def _usage(rewards: Rewards) -> UsageOut:
    tokens = sum(one.tokens for one in rewards.each)
    return UsageOut(prompt_tokens=tokens, total_tokens=tokens)


def gym_samples(request: VerifyRequest) -> list[SampleIn]:
    """The conversation, for the chat template.

    Raises:
        Problem: text_invalid or invalid_request, for items that are no turns of one.
    """
    asked = request.responses_create_params
    return [conversation(responses_turns(asked, request.response), chat_tools(asked.get("tools")))]


def gym_answer(request: VerifyRequest, rewards: Rewards, model: Name) -> dict[str, Any]:
    """What was sent, and the reward."""
    return {**request.model_dump(), "reward": rewards.each[0].reward}


DIALECTS: tuple[Dialect[Any], ...] = (
    Dialect(
        "/get_reward",
        "openrlhf",
        "OpenRLHF's remote reward model",
        GetRewardRequest,
        openrlhf_samples,
        openrlhf_answer,
        place=lambda number: f"query[{number}]",
        example=example_of(GetRewardAnswer),
    ),
    Dialect(
        "/slime",
        "slime",
        "slime's remote_rm: the reward is the whole body",
        SlimeRequest,
        slime_samples,
        slime_answer,
        place=lambda _: "response",
        example=0.731,
        codes=(Code.NO_CHAT_TEMPLATE,),
    ),
    Dialect(
        "/classify",
        "classify",
        "vLLM's classify call, and SGLang's",
        ClassifyRequest,
        classify_samples,
        classify_answer,
        place=lambda number: f"input[{number}]",
        example=example_of(ClassifyAnswer),
    ),
    Dialect(
        "/v1/embeddings",
        "embeddings",
        "The call by which SGLang gives the rewards of a reward model",
        EmbeddingsRequest,
        embeddings_samples,
        embeddings_answer,
        place=lambda number: f"input[{number}]",
        example=example_of(EmbeddingsAnswer),
    ),
    Dialect(
        "/verify",
        "verify",
        "NeMo Gym's verify: what was sent, and the reward",
        VerifyRequest,
        gym_samples,
        gym_answer,
        place=lambda _: "response",
        example={**example_of(VerifyRequest), "reward": 0.731},
        codes=(Code.NO_CHAT_TEMPLATE,),
    ),
)
