"""Samples: a text in one of three forms, and hidden states."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from r2m_service.application.contract.base import (
    Label,
    Message,
    Real,
    SampleId,
    Whole,
)


class SplitIn(Message):
    """What the trainer computed from hidden states that stay with it (docs/algorithm.md)."""

    head: Whole | None = Field(default=None, description="whose u and v it was computed with")
    fused: Real | None = Field(default=None, description="v·c, at score")


class FeedbackIn(Message):
    """Policy hidden states: S tokens of width D_p, row-major, little-endian.

    With `split` they stay with the trainer: at score `split.fused` comes in their place, at align
    c and j, as float32 of shape [2, D_p].
    """

    dtype: str = Field(default="", examples=["bfloat16"], max_length=32)
    shape: list[Whole] = Field(
        default_factory=list[int], description="[S, D_p]", examples=[[2, 4]], max_length=8
    )
    data: Annotated[
        Any, WithJsonSchema({"type": ["string", "null"], "contentEncoding": "base64"})
    ] = Field(default=None, description="base64 in JSON; absent in a safetensors body")
    hidden_state: Literal["post_norm", "pre_norm"] | None = None
    last_token: bool | None = None
    tokens: Whole | None = Field(
        default=None,
        description="tokens of prompt + response; compared with the shape. Required with split: "
        "nothing else says how many there are",
    )
    split: SplitIn | None = None


class MessageIn(Message):
    """One turn of a conversation, as the chat template takes it."""

    role: str = Field(examples=["user"])
    content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: str | None = Field(default=None, description="JSON text, as the model wrote it")


class SampleIn(Message):
    """One response. Exactly one of: prompt + response; messages; token_ids."""

    id: SampleId
    prompt: str | None = None
    response: str | None = None
    format: Literal["chat", "raw", ""] = Field(
        default="chat",
        description="of prompt + response. chat: the backbone's chat template, one user and one "
        "assistant turn; raw: joined as they are",
    )
    special_tokens: bool | None = Field(
        default=None,
        description="of format raw. false: none are added; default: the tokenizer's own, but for a "
        "BOS that the text begins with",
    )
    truncation: Literal["left", "right"] | None = Field(
        default=None,
        description="of format raw: the side that is cut of a text that is too long. A "
        "`truncation` of the run wins",
    )
    messages: list[MessageIn] = Field(
        default_factory=list[MessageIn], description="a whole conversation; the last turn is judged"
    )
    tools: str | None = Field(
        default=None, description="function schemas for the chat template, as JSON text"
    )
    token_ids: list[Whole] = Field(
        default_factory=list[int],
        description="of the reward model's tokenizer, taken as they are",
    )
    unencodable: Label | None = Field(
        default=None,
        max_length=256,
        description="name of a text that holds lone surrogates, which UTF-8 cannot carry: sent in "
        "place of the text, and answered with text_invalid",
    )
    feedback: FeedbackIn | None = None
    group: Label = ""
    finish_reason: str | None = Field(default=None, max_length=100)
