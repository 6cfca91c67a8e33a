"""Conversations of other interfaces as turns for the chat template."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from r2m.errors import Code, Problem
from r2m_service.application.parsing import excerpt, read_json

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


def responses_turns(asked: Mapping[str, Any], answered: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a call of OpenAI's Responses API and of its answer.

    What the model thought to itself (`reasoning`) is no part of what is judged.

    Args:
        asked: `input`, a text or items, and maybe `instructions`.
        answered: `output`, items.

    Raises:
        Problem: text_invalid, naming an item that no chat template has a place for.
    """
    turns: list[dict[str, Any]] = []
    if asked.get("instructions"):
        turns.append({"role": "system", "content": asked["instructions"]})
    given = asked.get("input")
    if isinstance(given, str):
        turns.append({"role": "user", "content": given})
    else:
        _add_items(turns, given, "responses_create_params.input")
    _add_items(turns, answered.get("output"), "response.output")
    return turns


def chat_tools(tools: object) -> str | None:
    """The Responses API's function tools as the JSON text of what a chat template takes.

    Raises:
        Problem: text_invalid, for tools of another kind.
    """
    if not tools:
        return None
    field = "responses_create_params.tools"
    found: list[dict[str, Any]] = []
    for place, tool in enumerate(_entries(tools, field)):
        if tool.get("type") != "function":
            _refuse(f"{field}[{place}]", f"is of type {excerpt(tool.get('type'))}, not function")
        kept = {key: tool[key] for key in ("name", "description", "parameters") if key in tool}
        found.append({"type": "function", "function": kept})
    return json.dumps(found)


def turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as the contract has it: tool calls are JSON text there."""
    calls = message.get("tool_calls")
    return {**message, **({} if calls is None or isinstance(calls, str) else _calls(calls))}


def text_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns of OpenAI's chat form, in which a content may be a list of parts.

    Raises:
        Problem: text_invalid, naming a part that is no text.
    """
    return [
        {**turn(one), "content": _text(one["content"], f"messages[{place}].content")}
        if isinstance(one.get("content"), list)
        else turn(one)
        for place, one in enumerate(messages)
    ]


def _calls(calls: object) -> dict[str, str]:
    return {"tool_calls": json.dumps(calls)}


def _add_items(turns: list[dict[str, Any]], items: object, field: str) -> None:
    for place, item in enumerate(_entries(items, field)):
        where, kind = f"{field}[{place}]", item.get("type", "message")
        if kind == "message":
            text = _text(item.get("content"), f"{where}.content")
            turns.append({"role": item.get("role"), "content": text})
        elif kind == "function_call":
            _add_call(turns, item)
        elif kind == "function_call_output":
            turns.append(
                {
                    "role": "tool",
                    "content": _text(item.get("output"), f"{where}.output"),
                    "tool_call_id": item.get("call_id"),
                }
            )
        elif kind != "reasoning":
            _refuse(where, f"is of type {excerpt(kind)}, which has no place in a conversation")
    for one in turns:
        if isinstance(one.get("tool_calls"), list):
            one |= _calls(one["tool_calls"])


def _add_call(turns: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """A call belongs to the assistant's turn that it follows, as do others beside it."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": None})
    arguments = item.get("arguments")
    if isinstance(arguments, str):
        # Templates write arguments as objects; what the model wrote may be none.
        with contextlib.suppress(Problem):
            arguments = read_json(arguments)
    function = {"name": item.get("name"), "arguments": arguments}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    turns[-1].setdefault("tool_calls", []).append(call)


def _text(content: object, field: str) -> str:
    """A content's text: itself, or its parts joined.

    Raises:
        Problem: text_invalid, for a part that is no text.
    """
    if isinstance(content, str):
        return content
    found: list[str] = []
    for place, part in enumerate(_entries(content, field)):
        kind = part.get("type")
        text = part.get("refusal") if kind == "refusal" else part.get("text")
        if (kind not in _TEXT_PARTS and kind != "refusal") or not isinstance(text, str):
            _refuse(f"{field}[{place}]", f"is no text but {excerpt(kind)}")
        found.append(text)
    return "".join(found)


def _entries(value: object, field: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list):
        _refuse(field, f"is a text or a list of objects, got {excerpt(value)}")
    entries = cast("list[object]", value)
    for place, one in enumerate(entries):
        if not isinstance(one, dict):
            _refuse(f"{field}[{place}]", f"is an object, got {excerpt(one)}")
    return cast("list[Mapping[str, Any]]", entries)


def _refuse(field: str, why: str) -> NoReturn:
    raise Problem(Code.TEXT_INVALID, f"{field} {why}", field=field)
