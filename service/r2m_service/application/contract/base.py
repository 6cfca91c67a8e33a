"""What all messages share: names, numbers, errors, and how strict they are."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

MAX_SAMPLES = 65536
MAX_GROUP = 4096
"""Samples of one group."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["tldr-7"])]
BranchName = Annotated[str, StringConstraints(max_length=100)]
SampleId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Truncation = Literal["none", "left", "right", ""]
EmptyResponse = Literal["score", "error", ""]
Whole = Annotated[int, Field(strict=True)]
"""Without strict, true is 1 and "8" is 8."""
Real = Annotated[float, Field(strict=True)]
Number = Annotated[Whole, Field(ge=0, lt=2**31)]
Step = Annotated[Whole, Field(ge=1, lt=2**31)]
Label = Annotated[str, StringConstraints(min_length=0)]
"""Any text without lone surrogates, which no answer, database or message could carry."""
HeadName = Annotated[
    Annotated[str, StringConstraints(max_length=100)] | Number,
    Field(union_mode="left_to_right", examples=["live", 12]),
]


def _from_base64(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Vector = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""float32 numbers, little-endian; base64 in JSON (and in protobuf's JSON form)."""


class Message(BaseModel):
    """Unknown keys are errors: a misspelt key must not be a silent default."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)


class Answer(BaseModel):
    """Answers leave out what is absent, on both transports."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorOut(Answer):
    """An error of the table (docs/errors.md)."""

    code: str
    message: str
    retryable: bool
    field: str | None = None


class ErrorBody(Answer):
    """The body of every answer that is not a success."""

    error: ErrorOut
