"""Samples and preference pairs from JSON lines, in every form of text that the interface takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from r2m_client._samples import Pair, Sample
from r2m_client.cli._jsonl import objects

if TYPE_CHECKING:
    from collections import Counter
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


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of preferences: completions of one prompt, and which of them are right.

    Attributes:
        name: its id, else its line's number.
        line: its number in the file.
        chosen: the right completions: ID/chosen, or ID/chosen/0, … where they are a list.
        rejected: the others, named likewise.
        values: the row's other keys that were asked for.
    """

    name: str
    line: int
    chosen: list[Sample]
    rejected: list[Sample]
    values: dict[str, Any]


def choices(
    lines: Iterable[str], held: States, ignored: Counter[str], also: tuple[str, ...] = ()
) -> Iterator[Choice]:
    """The preferences of each line.

    A side is a completion, or a list of completions; a completion is a text, or a list of turns,
    which go on where the prompt ends unless they repeat it.

    Args:
        lines: JSON objects.
        held: hidden states by the completions' names; where there are any, each has its own.
        ignored: counts the lines with keys that are not looked at.
        also: other keys to keep.

    Raises:
        ValueError: a line that states no preference, by its number.
    """
    for number, values in objects(lines, (*PAIR_KEYS, *also), ignored):
        name = _name(values, number)
        chosen, rejected = (
            [
                Sample(label, hidden_states=_held(number, held, label), **text)
                for label, text in _completions(number, values, side, f"{name}/{side}")
            ]
            for side in ("chosen", "rejected")
        )
        kept = {key: values[key] for key in also if key in values}
        yield Choice(name, number, chosen, rejected, kept)


def pairs(lines: Iterable[str], ignored: Counter[str]) -> Iterator[Pair]:
    """A pair without hidden states from each line; arguments as for `choices`.

    Raises:
        ValueError: a line that is no pair, by its number.
    """
    for one in choices(lines, {}, ignored):
        if len(one.chosen) + len(one.rejected) > 2:
            raise ValueError(f"line {one.line}: a pair has one chosen and one rejected completion")
        yield Pair(one.name, one.chosen[0], one.rejected[0])


def show_ignored(ignored: Counter[str]) -> None:
    """Print which keys were not looked at, on standard error."""
    if ignored:
        keys = ", ".join(f"{key} ({count} rows)" for key, count in ignored.most_common())
        click.echo(f"ignored keys: {keys}", err=True)


def _completions(
    number: int, values: dict[str, Any], side: str, name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and the texts of a side's completions."""
    if side not in values:
        raise ValueError(f"line {number} has no {side!r}")
    found = values[side]
    if not isinstance(found, list) or (found and isinstance(found[0], dict)):
        yield name, _text(number, values, side, found)
        return
    several = cast("list[object]", found)
    if not several:
        raise ValueError(f"line {number}: {side!r} is an empty list")
    for place, one in enumerate(several):
        yield f"{name}/{place}", _text(number, values, side, one)


def _text(number: int, values: dict[str, Any], side: str, completion: object) -> dict[str, Any]:
    prompt, tools = values.get("prompt"), _tools(number, values)
    if isinstance(completion, str) and not isinstance(prompt, list) and tools is None:
        return {
            "prompt": _is(number, values, "prompt", str),
            "response": completion,
            "format": values.get("format", "chat"),
        }
    if isinstance(prompt, str):
        before = [{"role": "user", "content": prompt}]
    else:
        before = [] if prompt is None else _turns(number, values, "prompt")
    if isinstance(completion, str):
        turns = [{"role": "assistant", "content": completion}]
    elif isinstance(completion, list):
        turns = _turns(number, {side: completion}, side)
    else:
        raise ValueError(f"line {number}: a completion in {side!r} is a string or a list of turns")
    if before and turns[: len(before)] == before:  # a whole conversation
        before = []
    return {"messages": [*before, *turns], "tools": tools}


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
