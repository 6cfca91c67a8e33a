"""From untrusted values to the contract's models: one sentence for whatever is wrong.

Both transports, and the use cases that check a client's nested object, come through here, so that
the same mistake gets the same words everywhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from r2m.errors import Code, Problem

M = TypeVar("M")

_EXCERPT = 40
_COUNTED = 100

# What must hold, by pydantic's type of error; `{...}` is filled from the error's context.
_MUST: dict[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not a key of this request",
    "unexpected_keyword_argument": "is not a key of this request",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "string_unicode": "must be valid Unicode",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number of usual size",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "none_required": "must be left out",
    "list_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "value_error": "is not right: {error}",
}
_SAY_WHAT_CAME = frozenset(_MUST) - {
    "missing",
    "extra_forbidden",
    "unexpected_keyword_argument",
    "value_error",
    "too_long",
}


def parse(model: type[M], value: object, *, field: str = "") -> M:
    """Validate a value as a contract model or a dataclass.

    Args:
        model: what it shall become.
        value: dicts, lists, strings, numbers and bytes of a client.
        field: where in the request the value stands, put before the path of every error.

    Raises:
        Problem: invalid_request, naming the first field that is wrong.
    """
    try:
        return cast("M", _adapter(model).validate_python(value))
    except ValidationError as error:
        raise _problem(error, value, field) from None


def parse_json(model: type[M], raw: bytes | bytearray) -> M:
    """Validate a JSON text. Lone surrogates in samples' texts are these samples' own error.

    Raises:
        Problem: invalid_request, for what is not JSON in UTF-8, and for what `parse` refuses.
    """
    return parse(model, read_json(raw, surrogates=True))


def read_json(
    raw: bytes | bytearray | str, *, what: str = "the body", surrogates: bool = False
) -> object:
    """Decode a JSON text: UTF-8, no NaN, bounded nesting.

    Args:
        what: is read, for the error.
        surrogates: whether strings may hold lone surrogates; the caller refuses them where they
            stand.

    Raises:
        Problem: invalid_request.
    """
    try:
        return from_json(raw, allow_inf_nan=False, cache_strings="keys")
    except (ValueError, TypeError) as error:
        # The parser names a place, never the text it found there; of a string with surrogates it
        # says that it is none.
        if surrogates and (found := _with_surrogates(raw)) is not None:
            return found
        raise Problem(Code.INVALID_REQUEST, f"{what} is not valid JSON: {error}") from None


_LONE = re.compile(
    r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"  # both halves: a character
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|[\ud800-\udfff]|(\\.)",
    re.DOTALL,
)


def _with_surrogates(raw: bytes | bytearray | str) -> object | None:
    """A JSON text that is right but for lone surrogates; None, where it is not."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()
        # The strict parser, which bounds nesting and numbers, sees them replaced; Python's own
        # keeps them.
        from_json(_LONE.sub(lambda one: one[1] or one[2] or "?", text), allow_inf_nan=False)
        return json.loads(text)
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _adapter(model: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _problem(error: ValidationError, value: object, prefix: str) -> Problem:
    errors = error.errors(include_url=False)
    first = errors[0]
    path = _path(first, value, prefix)
    # A union reports one error for each of its members: fields are counted, not errors.
    others = len({_path(one, value, prefix) for one in errors[:_COUNTED]}) - 1
    more = ""
    if others:
        count = f"at least {others}" if len(errors) > _COUNTED else str(others)
        more = f" ({count} more wrong besides)"
    return Problem(
        Code.INVALID_REQUEST,
        f"{path or 'the request'} {_sentence(first)}{more}",
        field=path or None,
    )


def parameter_problem(error: ErrorDetails) -> Problem:
    """What is wrong with a parameter of a path or a query: its last place is its name."""
    name = str(error["loc"][-1])[:_EXCERPT] if error["loc"] else ""
    return Problem(
        Code.INVALID_REQUEST, f"{name or 'the path'} {_sentence(error)}", field=name or None
    )


def _sentence(error: ErrorDetails) -> str:
    kind = error["type"]
    context = {key: str(one)[:200] for key, one in error.get("ctx", {}).items()}
    try:
        must = _MUST[kind].format_map(context)
    except KeyError:
        must = f"is not right: {error['msg']}"[:300]
    return f"{must}, got {excerpt(error['input'])}" if kind in _SAY_WHAT_CAME else must


def _path(error: ErrorDetails, value: object, prefix: str) -> str:
    """The place of an error as `samples[3].prompt`.

    pydantic's locations also name the members of unions; only what is really a key or an index of
    the value is kept.
    """
    path, at = prefix, value
    for place, part in enumerate(error["loc"]):
        if isinstance(part, int) and isinstance(at, Sequence) and not isinstance(at, str | bytes):
            found = part < len(at)
            following: object = cast("Sequence[object]", at)[part] if found else None
            path += f"[{part}]"
        elif isinstance(at, Mapping):
            entries = cast("Mapping[object, object]", at)
            last = place == len(error["loc"]) - 1
            if part not in entries and not (last and error["type"] == "missing"):
                break
            following = entries.get(part)
            name = str(part)[:_EXCERPT]
            path += f".{name}" if path else name
        else:
            break
        at = following
    return path


def excerpt(value: object) -> str:
    """A short form of a client's value that is safe in a sentence."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value[:_EXCERPT]) + ("…" if len(value) > _EXCERPT else "")
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a huge number"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "a number that is not finite"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes"
    return "a list" if isinstance(value, Sequence) else "something else"
