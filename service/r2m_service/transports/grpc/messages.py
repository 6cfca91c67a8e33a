"""Protobuf messages to the plain values that the contract validates, and answers back.

Reading walks the descriptor instead of going through protobuf's JSON form: that one turns bytes
into base64 and 64-bit integers into strings, which costs copies and makes errors read differently
from those over HTTP.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from google.protobuf.json_format import Error, MessageToDict, ParseDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct

from r2m.errors import Code, Problem
from r2m_service.application.contract import Answer

P = TypeVar("P", bound=Message)

_EXACT = 2**53


def decode(kind: type[P], raw: bytes) -> P:
    """A message from its bytes.

    Raises:
        Problem: invalid_request, where they are cut short or not UTF-8 where text belongs.
    """
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise Problem(
            Code.INVALID_REQUEST, f"the message is not a whole {kind.DESCRIPTOR.full_name}"
        ) from None


def to_value(message: Message) -> dict[str, Any]:
    """A request as the dict that its JSON body would be, with bytes as bytes.

    Fields without presence are there with their empty value, which the contract takes as absent or
    refuses; optional fields only where they were sent.

    Raises:
        Problem: invalid_request, for numbers that JSON has not (NaN, infinity).
    """
    value: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        # Read once: every access to a bytes field copies it.
        found: object = getattr(message, field.name)
        if isinstance(found, Message):
            if message.HasField(field.name):
                value[field.name] = _struct(found) if isinstance(found, Struct) else to_value(found)
        elif isinstance(found, str | bytes | int | float):
            if not field.has_presence or message.HasField(field.name):
                value[field.name] = found
        else:
            entries = cast("list[object]", found)
            value[field.name] = [
                to_value(one) if isinstance(one, Message) else one for one in entries
            ]
    return value


def to_bytes(answer: Answer, kind: type[Message]) -> bytes:
    """An answer of the contract as the protobuf message of the same fields."""
    return ParseDict(answer.model_dump(exclude_none=True), kind()).SerializeToString()


def _struct(struct: Struct) -> dict[str, Any]:
    try:
        value = MessageToDict(struct)
    except (Error, ValueError):  # the package raises one or the other, by its version
        raise Problem(
            Code.INVALID_REQUEST, "a number among the settings is NaN or infinite"
        ) from None
    return {key: _whole(one) for key, one in value.items()}


def _whole(value: Any) -> Any:
    """Struct knows doubles only: whole ones become integers again, as JSON would have them."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_whole(one) for one in cast("list[Any]", value)]
    return value
