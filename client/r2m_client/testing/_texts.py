"""A sample's text, counted and refused as the server does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from r2m.errors import Code, Problem

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone

PAIR = "prompt, response"
CUT = ("left", "right")
OF_RAW = ("special_tokens", "truncation")
"""Fields of a sample that only a text of format raw has."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens that the reward model reads, and those cut off."""

    tokens: int
    cut: int = 0


def counted(
    backbone: Backbone, given: dict[str, Any], truncation: str, empty_response: str
) -> Counted:
    """How many tokens a sample's text has.

    Args:
        backbone: counts them.
        given: a sample of the request.
        truncation: none, left or right.
        empty_response: score or error.

    Raises:
        Problem: text_empty, text_invalid or text_too_long.
    """
    unencodable: str | None = given.get("unencodable")
    if unencodable:
        raise Problem(
            Code.TEXT_INVALID,
            f"{unencodable} holds lone surrogates, which are no characters",
            field=unencodable,
        )
    messages: list[dict[str, Any]] = given.get("messages") or []
    ids: list[int] = given.get("token_ids") or []
    empty = empty_response == "score"
    pair = given.get("prompt") is not None or given.get("response") is not None
    forms = [pair, bool(messages), bool(ids)]
    if sum(forms) != 1:
        what = "no text" if not any(forms) else "more than one text"
        raise Problem(
            Code.TEXT_INVALID if any(forms) else Code.TEXT_EMPTY,
            f"the sample has {what}: give prompt and response, or messages, or token_ids",
            field=PAIR,
        )
    for name in OF_RAW:
        if given.get(name) is not None and not (pair and given["format"] == "raw"):
            raise Problem(
                Code.TEXT_INVALID,
                f"{name} is for prompt and response of format raw: leave it out",
                field=name,
            )
    if messages:
        tokens, field = (
            backbone.count_tokens(_conversation(messages, given, empty=empty)),
            "messages",
        )
    elif ids:
        tokens, field = _ids(ids), "token_ids"
    else:
        tokens, field = backbone.count_tokens(_pair(given, empty=empty)), PAIR
    over = tokens - backbone.max_length
    if over <= 0:
        return Counted(tokens)
    if truncation not in CUT and given.get("truncation") is None:
        raise Problem(
            Code.TEXT_TOO_LONG,
            f"{tokens} tokens, the reward model takes at most {backbone.max_length}",
            field=field,
        )
    return Counted(backbone.max_length, over)


def _pair(given: dict[str, Any], *, empty: bool) -> str:
    raw = given["format"] == "raw"
    prompt, response = given.get("prompt") or "", given.get("response")
    if response is None:
        raise Problem(
            Code.TEXT_EMPTY, 'the sample has no response; an empty one is ""', field="response"
        )
    if not prompt and not raw:
        raise Problem(Code.TEXT_EMPTY, "the prompt is empty", field="prompt")
    if not response and not (empty and prompt):
        raise Problem(Code.TEXT_EMPTY, "the response is empty", field="response")
    return f"{prompt}{'' if raw else ' '}{response}"


def _conversation(messages: list[dict[str, Any]], given: dict[str, Any], *, empty: bool) -> str:
    for place, turn in enumerate(messages):
        _require_list(turn.get("tool_calls"), f"messages[{place}].tool_calls")
    _require_list(given.get("tools"), "tools")
    last = len(messages) - 1
    if messages[last].get("role") != "assistant":
        raise Problem(
            Code.TEXT_INVALID,
            "the last message is the one that is judged: its role is assistant",
            field=f"messages[{last}].role",
        )
    filled = [bool(turn.get("content") or turn.get("tool_calls")) for turn in messages]
    if not filled[-1] and not (empty and any(filled)):
        raise Problem(Code.TEXT_EMPTY, "the last message is empty", field=f"messages[{last}]")
    return " ".join(str(turn.get("content") or "") for turn in messages)


def _ids(ids: list[int]) -> int:
    for place, one in enumerate(ids):
        if one < 0:
            raise Problem(
                Code.TEXT_INVALID, f"token id {one} is below 0", field=f"token_ids[{place}]"
            )
    return len(ids)


def _require_list(text: str | None, field: str) -> None:
    if text is None:
        return
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # raises where there are lone surrogates
    except ValueError:
        raise Problem(Code.TEXT_INVALID, f"{field} is not valid JSON", field=field) from None
    if not isinstance(value, list):
        raise Problem(Code.TEXT_INVALID, f"{field} is the JSON text of a list", field=field)


def query_of(given: dict[str, Any]) -> str:
    """The query that a sample answers: what training and judging are told apart by."""
    messages = cast("list[dict[str, Any]]", given.get("messages") or [])
    text = given.get("token_ids") or given.get("prompt") or given.get("response")
    query = messages[:-1] if messages else text
    return json.dumps(query, sort_keys=True)


def text_of(given: dict[str, Any]) -> dict[str, Any]:
    """A sample's text in the fields it came in."""
    names = ("prompt", "response", "messages", "tools", "token_ids")
    text = {name: given[name] for name in names if given.get(name)}
    if given.get("prompt") and given.get("response") == "":
        text["response"] = ""
    text |= {name: given[name] for name in OF_RAW if given.get(name) is not None}
    return text | ({"format": "raw"} if given["format"] == "raw" else {})
