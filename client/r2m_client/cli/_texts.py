"""Samples and preference pairs from JSON lines, in every form of text that the interface takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from r2m_client._samples import Pair, Sample
from r2m_client.cli._jsonl import objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from r2m.tensors import TensorValue

    States = Mapping[str, TensorValue]

SAMPLE_KEYS = (
    "id", "prompt", "response", "format", "messages", "tools", "token_ids", "group",
    "finish_reason", "special_tokens", "truncation",
)  # fmt: skip
PAIR_KEYS = ("id", "prompt", "chosen", "rejected", "format", "tools")


def states(file: str | None) -> States:
    """The tensors of a safetensors file, by name; none without a file.

    Raises:
        ValueError: it cannot be read, or is no such file.
    """
    if file is None:
        return {}
    from r2m_client.cli._tensors import read

    return read(file)


def samples(lines: Iterable[str], held: States, *, form: str = "chat") -> Iterator[Sample]:
    """A sample from each line; its id is the line's number where it has none.

    Args:
        lines: JSON objects.
        held: hidden states by sample id; where there are any, every sample has its own.
        form: of prompt and response, where a line does not say.

    Raises:
        ValueError: a line that is no sample, by its number.
    """
    for number, values in objects(lines, SAMPLE_KEYS):
        name = _name(values, number)
        rest: dict[str, Any] = {
            key: _is(number, values, key, str)
            for key in ("format", "group", "finish_reason", "truncation")
            if key in values
        }
        if "messages" in values:
            rest |= {
                "messages": _turns(number, values, "messages"),
                "tools": _tools(number, values),
            }
        elif "token_ids" in values:
            rest["token_ids"] = _is(number, values, "token_ids", list)
            if not all(type(one) is int for one in rest["token_ids"]):
                raise ValueError(f"line {number}: 'token_ids' are whole numbers")
        else:
            rest |= {key: _is(number, values, key, str) for key in ("prompt", "response")}
            rest.setdefault("format", form)
            if "special_tokens" in values:
                rest["special_tokens"] = _is(number, values, "special_tokens", bool)
        yield Sample(name, hidden_states=_held(number, held, name), **rest)


def pairs(lines: Iterable[str], held: States) -> Iterator[Pair]:
    """A pair from each line, whose sides are ID/chosen and ID/rejected.

    The sides are responses to the prompt, or lists of turns, which go on where a list of turns as
    the prompt ends.

    Args:
        lines: JSON objects.
        held: hidden states by the sides' names; where there are any, every side has its own.

    Raises:
        ValueError: a line that is no pair, by its number.
    """
    for number, values in objects(lines, PAIR_KEYS):
        name = _name(values, number)
        sides: list[Sample] = []
        for side in ("chosen", "rejected"):
            one = f"{name}/{side}"
            if isinstance(values.get(side), list):
                before = _turns(number, values, "prompt") if "prompt" in values else []
                text: dict[str, Any] = {
                    "messages": [*before, *_turns(number, values, side)],
                    "tools": _tools(number, values),
                }
            else:
                text = {
                    "prompt": _is(number, values, "prompt", str),
                    "response": _is(number, values, side, str),
                    "format": values.get("format", "chat"),
                }
            sides.append(Sample(one, hidden_states=_held(number, held, one), **text))
        yield Pair(name, *sides)


def _name(values: dict[str, Any], number: int) -> str:
    name = values.get("id", number)
    if type(name) not in (str, int):
        raise ValueError(f"line {number}: 'id' is a string")
    return str(name)


_KINDS: dict[type[Any], str] = {str: "string", list: "list", bool: "boolean"}


def _is(number: int, values: dict[str, Any], key: str, kind: type[Any]) -> Any:
    if not isinstance(values.get(key), kind):
        what = _KINDS[kind]
        raise ValueError(f"line {number} has no {what} {key!r}")
    return values[key]


def _turns(number: int, values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = cast("list[object]", _is(number, values, key, list))
    if not all(isinstance(one, dict) for one in found):
        raise ValueError(f"line {number}: {key!r} is a list of turns, which are objects")
    return cast("list[dict[str, Any]]", found)


def _tools(number: int, values: dict[str, Any]) -> list[dict[str, Any]] | None:
    return _turns(number, values, "tools") if "tools" in values else None


def _held(number: int, held: States, name: str) -> TensorValue | None:
    if held and name not in held:
        raise ValueError(f"line {number}: the states hold no tensor {name}")
    return held.get(name)
