"""Each trainer's form: its request as samples, its rewards as an answer."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel

from r2m.errors import Code, Problem
from r2m_service.application.contract import SampleIn
from r2m_service.transports.compat.conversation import (
    chat_tools,
    responses_turns,
    text_turns,
    turn,
)
from r2m_service.transports.compat.messages import (
    AggregateAnswer,
    AggregateRequest,
    ClassifyAnswer,
    ClassifyRequest,
    ClassOut,
    EmbeddingOut,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EngineRequest,
    GetRewardAnswer,
    GetRewardRequest,
    LlamaFactoryAnswer,
    LlamaFactoryRequest,
    SlimeRequest,
    UsageOut,
    VerifyRequest,
    example_of,
)
from r2m_service.transports.compat.queries import Queries
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
        place: where in a body the text of a number stands.
        example: of an answer.
        codes: errors beside those of all dialects.
    """

    path: str
    name: str
    summary: str
    request: type[M]
    samples: Callable[[M], list[SampleIn]]
    answer: Callable[[M, Rewards, Name], object]
    place: Callable[[M, int], str]
    example: object
    codes: tuple[Code, ...] = ()


def openrlhf_answer(request: GetRewardRequest, rewards: Rewards, model: Name) -> GetRewardAnswer:
    """Numbers by name; the names depend on the run alone, as OpenRLHF joins them in batches."""
    numbers = [one.reward for one in rewards.each]
    logs: dict[str, list[float]] = {}
    if rewards.each:
        logs["vanilla_reward"] = [one.vanilla_reward for one in rewards.each]
        logs["tokens"] = [one.tokens for one in rewards.each]
        logs["truncated"] = [one.truncated for one in rewards.each]
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


def engine_samples(request: EngineRequest, texts: str | Sequence[Any] | None) -> list[SampleIn]:
    """One text or several, token ids of one or several, or one conversation.

    Raises:
        Problem: invalid_request: neither texts nor messages, or both; special tokens on top of
            those of the chat template.
    """
    if (texts is None) == (request.messages is None):
        raise Problem(
            Code.INVALID_REQUEST, "give either input (texts, token ids) or messages", field="input"
        )
    if request.messages is not None:
        if request.add_special_tokens:
            raise Problem(
                Code.INVALID_REQUEST,
                "the chat template writes the special tokens of messages: leave "
                "add_special_tokens out, or send false",
                field="add_special_tokens",
            )
        return [conversation(text_turns(request.messages))]
    assert texts is not None
    # True is what vLLM and this server do without the option, so it makes no other sample.
    special = False if request.add_special_tokens is False else None
    if isinstance(texts, str):
        return [raw("", texts, special=special)]
    if texts and isinstance(texts[0], int):
        return [of_ids(cast("Sequence[int]", texts))]
    return [raw("", one, special=special) if isinstance(one, str) else of_ids(one) for one in texts]


def engine_place(request: EngineRequest, number: int) -> str:
    """Where the text of a number stands."""
    return f"input[{number}]" if request.messages is None else "messages"


def classify_samples(request: ClassifyRequest) -> list[SampleIn]:
    """The texts of vLLM's `input` or `messages`, or of SGLang's `text`.

    Raises:
        Problem: as `engine_samples`.
    """
    if request.text is not None and request.input is not None:
        raise Problem(Code.INVALID_REQUEST, "give either input or text", field="input")
    return engine_samples(request, request.text if request.input is None else request.input)


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
    """Texts, token ids, or a conversation.

    Raises:
        Problem: as `engine_samples`.
    """
    return engine_samples(request, request.input)


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


def llamafactory_answer(
    request: LlamaFactoryRequest, rewards: Rewards, model: Name
) -> LlamaFactoryAnswer:
    """As its own server answers."""
    return LlamaFactoryAnswer(
        id=f"scoreval-{uuid.uuid4().hex}",
        model=request.model or model(),
        scores=[one.reward for one in rewards.each],
    )


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


def aggregated(request: AggregateRequest) -> AggregateAnswer:
    """The statistics that NeMo Gym shows of a collection of rollouts."""
    tasks: dict[int, list[float]] = {}
    for one in request.verify_responses:
        tasks.setdefault(one.task, []).append(one.reward)
    every = _statistics([reward for rewards in tasks.values() for reward in rewards])
    return AggregateAnswer(
        group_level_metrics=[
            {"_ng_task_index": task, **_statistics(rewards)}
            for task, rewards in sorted(tasks.items())
        ],
        agent_metrics=every,
        key_metrics={name: value for name, value in every.items() if name.startswith("mean/")},
    )


def _statistics(rewards: Sequence[float]) -> dict[str, float]:
    if not rewards:
        return {}
    found = {
        "mean/reward": fmean(rewards),
        "max/reward": max(rewards),
        "min/reward": min(rewards),
        "median/reward": median(rewards),
    }
    return found | ({"std/reward": stdev(rewards)} if len(rewards) > 1 else {})


DIALECTS: tuple[Dialect[Any], ...] = (
    Dialect(
        "/get_reward",
        "openrlhf",
        "OpenRLHF's remote reward model",
        GetRewardRequest,
        Queries().samples,
        openrlhf_answer,
        place=lambda _, number: f"query[{number}]",
        example=example_of(GetRewardAnswer),
    ),
    Dialect(
        "/slime",
        "slime",
        "slime's remote_rm: the reward is the whole body",
        SlimeRequest,
        slime_samples,
        slime_answer,
        place=lambda *_: "response",
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
        place=engine_place,
        example=example_of(ClassifyAnswer),
    ),
    Dialect(
        "/v1/embeddings",
        "embeddings",
        "The call by which SGLang gives the rewards of a reward model",
        EmbeddingsRequest,
        embeddings_samples,
        embeddings_answer,
        place=engine_place,
        example=example_of(EmbeddingsAnswer),
    ),
    Dialect(
        "/v1/score/evaluation",
        "llamafactory",
        "LLaMA-Factory's reward_model_type api",
        LlamaFactoryRequest,
        Queries().evaluated,
        llamafactory_answer,
        place=lambda _, number: f"messages[{number}]",
        example=example_of(LlamaFactoryAnswer),
    ),
    Dialect(
        "/verify",
        "verify",
        "NeMo Gym's verify: what was sent, and the reward",
        VerifyRequest,
        gym_samples,
        gym_answer,
        place=lambda *_: "response",
        example={**example_of(VerifyRequest), "reward": 0.731},
        codes=(Code.NO_CHAT_TEMPLATE,),
    ),
)
