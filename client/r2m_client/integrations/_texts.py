"""Prompts and completions of a trainer as samples: what the reward model is to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from r2m_client._samples import Sample

Turns = Sequence[Mapping[str, Any]]

KEPT = ("name", "tool_call_id", "tool_calls")
"""What a turn may have besides role and content; the rest (reasoning, ...) is the policy's own."""


def as_sample(
    name: str,
    group: str,
    prompt: str | Turns,
    completion: str | Turns,
    *,
    format: Literal["raw", "chat"],
    tools: Sequence[Mapping[str, Any]] | None,
) -> Sample:
    """One rollout, without its hidden states.

    A conversation goes as its turns; strings go as `format` says.

    Raises:
        ValueError: something besides text.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return Sample(name, prompt, completion, group=group, format=format)
    start: Turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    end: Turns = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else completion
    )
    messages = [_turn(turn) for turn in (*start, *end)]
    return Sample(name, group=group, messages=messages, tools=tools)


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts: list[Mapping[str, Any]] = list(content)
        other = sorted({str(part.get("type")) for part in parts} - {"text"})
        if other:
            raise ValueError(f"R2M scores text; a prompt has a part of type {', '.join(other)}")
        content = "".join(str(part.get("text", "")) for part in parts)
    kept = {key: turn[key] for key in KEPT if turn.get(key)}
    return {"role": turn["role"], "content": content, **kept}
