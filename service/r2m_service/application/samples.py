"""What a client sent of samples: ids, texts and tensors, checked one by one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

from r2m.errors import Code, Problem
from r2m.tensors import Bytes, TensorValue
from r2m_service.application.about import content
from r2m_service.application.contract import AlignRequest, ErrorOut, SampleIn
from r2m_service.application.engine_port import Engine
from r2m_service.application.feedback import decode_feedback, feedback_bytes, feedback_of
from r2m_service.application.parsing import read_json
from r2m_service.application.scoring_items import AnyText, Conversation, Item, Split, Text
from r2m_service.domain.runs import Run, TextRules

OF_RAW = ("special_tokens", "truncation")
"""Fields of a sample that only a text of format raw has."""


def require_distinct(ids: Iterable[tuple[str, str]], *, what: str) -> None:
    """Refuse a call in which two things carry one id.

    Args:
        ids: each with the place of its field.

    Raises:
        Problem: duplicate_id, at the second one.
    """
    seen: set[str] = set()
    for one, field in ids:
        if one in seen:
            raise Problem(
                Code.DUPLICATE_ID,
                f"two {what} have the id {one[:80]!r}; ids are distinct",
                field=field,
            )
        seen.add(one)


async def items_of(
    engine: Engine,
    run: Run | None,
    samples: Sequence[SampleIn],
    *,
    rules: TextRules | None = None,
    texts_alone: bool = False,
) -> list[Item | Problem]:
    """Each sample checked and tokenized, or what is wrong with it.

    Args:
        rules: for texts, where there is no run; a run has its own.
        texts_alone: whether their hidden states are to come later.
    """
    if any(sample.feedback and isinstance(sample.feedback.data, str) for sample in samples):
        # Only where there is base64: the way to a thread and back is a tenth of what a call costs.
        await asyncio.to_thread(decode_feedback, samples)
    feedback: list[TensorValue | Split | Problem | None] = []
    for sample in samples:
        try:
            feedback.append(None if texts_alone else feedback_of(run, sample))
        except Problem as problem:
            feedback.append(problem)
    texts: list[AnyText | Problem] = []
    for sample in samples:
        try:
            texts.append(_text(sample))
        except Problem as problem:
            texts.append(problem)
    encoded = iter(
        await engine.encode(
            [text for text in texts if not isinstance(text, Problem)],
            rules=run.texts if run else rules or TextRules(),
        )
    )
    found: list[Item | Problem] = []
    for text, value in zip(texts, feedback, strict=True):
        tokens = text if isinstance(text, Problem) else next(encoded)
        if isinstance(tokens, Problem):
            found.append(tokens)
        elif isinstance(value, Problem):
            found.append(value)
        elif isinstance(value, Split):
            found.append(Item(tokens.token_ids, None, tokens.truncated, value))
        else:
            found.append(Item(tokens.token_ids, value, tokens.truncated))
    return found


def _text(sample: SampleIn) -> AnyText:
    """The one text that a sample carries.

    Raises:
        Problem: text_empty, where there is none; text_invalid, where there are several, or where
            the client could not send it.
    """
    if sample.unencodable:
        raise Problem(
            Code.TEXT_INVALID,
            f"{sample.unencodable} holds lone surrogates, which are no characters",
            field=sample.unencodable,
        )
    pair = sample.prompt is not None or sample.response is not None
    given = [pair, bool(sample.messages), bool(sample.token_ids)]
    if sum(given) != 1:
        what = "no text" if not any(given) else "more than one text"
        raise Problem(
            Code.TEXT_INVALID if any(given) else Code.TEXT_EMPTY,
            f"the sample has {what}: give prompt and response, or messages, or token_ids",
            field="prompt, response",
        )
    raw = pair and sample.format == "raw"
    for name in OF_RAW:
        if getattr(sample, name) is not None and not raw:
            raise Problem(
                Code.TEXT_INVALID,
                f"{name} is for prompt and response of format raw: leave it out",
                field=name,
            )
    if sample.token_ids:
        return tuple(sample.token_ids)
    if not sample.messages:
        if sample.response is None:  # not an empty one: a misspelt or forgotten key has no reward
            raise Problem(
                Code.TEXT_EMPTY, 'the sample has no response; an empty one is ""', field="response"
            )
        return Text(
            sample.prompt or "",
            sample.response,
            raw=raw,
            special=sample.special_tokens is not False,
            cut=sample.truncation,
        )
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(sample.messages):
        turn = message.model_dump(exclude_none=True)
        turn.setdefault("content", None if message.tool_calls else "")
        if message.tool_calls is not None:
            turn["tool_calls"] = _json_list(message.tool_calls, f"messages[{place}].tool_calls")
        turns.append(turn)
    tools = None if sample.tools is None else _json_list(sample.tools, "tools")
    return Conversation(turns, tools)


def _json_list(text: str, field: str) -> list[Any]:
    try:
        value = read_json(text, what=field)
    except Problem as problem:
        raise Problem(Code.TEXT_INVALID, problem.message, field=field) from None
    if not isinstance(value, list):
        raise Problem(Code.TEXT_INVALID, f"{field} is the JSON text of a list", field=field)
    return cast("list[Any]", value)


def error_out(problem: Problem) -> ErrorOut:
    """A problem as it stands beside a sample."""
    return ErrorOut(
        code=problem.code.value,
        message=problem.message,
        retryable=problem.row.retryable,
        field=problem.field,
    )


def prompt_hash(sample: SampleIn) -> str:
    """SHA-256 of the query that a sample answers: what training and judging are told apart by.

    Of token ids, and of a raw text without a prompt, nobody knows where the response starts: all of
    them count.
    """
    if sample.messages:
        query: Any = [one.model_dump(exclude_none=True) for one in sample.messages[:-1]]
    else:
        query = sample.token_ids or sample.prompt or sample.response
    return _hash(query)


def text_hash(sample: SampleIn) -> str:
    """SHA-256 of a sample's text, whatever its id and its feedback."""
    return _hash(text_of(sample))


def text_of(sample: SampleIn) -> dict[str, Any]:
    """A sample's text in the fields it came in."""
    fields = {"prompt", "response", "format", *OF_RAW, "messages", "tools", "token_ids"}
    text = sample.model_dump(include=fields, exclude_none=True, exclude_defaults=True)
    # An empty response to a prompt is a text of its own.
    return {
        key: value
        for key, value in text.items()
        if value not in ("", []) or (key == "response" and sample.prompt)
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_hash(request: AlignRequest) -> str:
    """SHA-256 of what an align asks for, whatever encoding it came in.

    Over ids, texts, labels, stated conventions, dtypes, shapes and bytes; base64 is decoded first.
    """
    digest = hashlib.sha256()

    def add(value: Bytes) -> None:
        digest.update(len(value).to_bytes(8, "little"))
        digest.update(value)

    def add_all(samples: Sequence[SampleIn]) -> None:
        for sample in samples:
            given = sample.feedback
            stated: list[Any] | None = None
            if given is not None:
                stated = [
                    given.dtype,
                    given.shape,
                    given.hidden_state,
                    given.last_token,
                    given.tokens,
                ]
                if given.split is not None:  # only then: older hashes stay true
                    stated.append(given.split.model_dump())
            text = [sample.id, sample.prompt, sample.response, sample.format or "chat", stated]
            add(json.dumps(text).encode())
            # Only where they are given: hashes made before these fields existed stay true.
            more = {
                "messages": [message.model_dump(exclude_none=True) for message in sample.messages],
                "tools": sample.tools,
                "token_ids": sample.token_ids,
            }
            if sample.unencodable:
                more["unencodable"] = sample.unencodable
            of_raw = sample.model_dump(include=set(OF_RAW), exclude_none=True)
            if any(more.values()) or of_raw:
                add(json.dumps({**more, **of_raw}).encode())
            if given is not None:
                try:
                    add(feedback_bytes(given))
                except Problem:  # what cannot be decoded is refused later; it still has a hash
                    add(repr(given.data).encode())

    for group in request.groups:
        add(json.dumps(["group", group.id, group.preferred or None, len(group.samples)]).encode())
        add_all(group.samples)
    for pair in request.anchors:
        add(json.dumps(["anchor", pair.id]).encode())
        add_all([pair.chosen, pair.rejected])
    return digest.hexdigest()


def tell_texts(samples: Sequence[SampleIn]) -> None:
    """Write samples' texts into the log, where an operator asked for it."""
    if content.isEnabledFor(logging.INFO):
        for sample in samples:
            told = sample.model_dump(
                include={"id", "prompt", "response", "messages", "token_ids"}, exclude_defaults=True
            )
            content.info("sample", extra={"facts": told})
