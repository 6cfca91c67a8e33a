"""Score and align with hidden states that stay here: which calls follow each other, no I/O.

A talk yields calls and is sent their results; both clients drive it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

from r2m.errors import Code
from r2m_client import _calls
from r2m_client._errors import ProtocolError, ServerError, server_error
from r2m_client._results import AlignPending, AlignResult, Score, ScoreResult
from r2m_client._samples import AnchorStates, Group, Kept, Sample, WireDtype
from r2m_client.split import Answers, Context, States

T = TypeVar("T")
Talk = Generator[_calls.Call[Any], Any, T]
Feedback = Literal["streamed", "split"] | Answers

ROUNDS = 8
"""Calls of one align at most: what a server asks never takes that many."""


def score(
    samples: Iterable[Sample],
    feedback: Literal["split"] | Answers,
    *,
    run: str | None,
    head: int | str,
    step: int | None,
    branch: str | None,
    wire_dtype: WireDtype,
) -> Talk[ScoreResult]:
    """Ask for u and v, answer with v·c."""
    sent = list(samples)
    answers = States.of(sent) if feedback == "split" else feedback
    tokens = answers.tokens()
    kept = {one.id: Kept(_tokens(one, tokens)) for one in sent if one.id in tokens}
    first: ScoreResult = yield _calls.score(
        sent, run=run, head=head, step=step, branch=branch, wire_dtype=wire_dtype, kept=kept
    )
    queries = {one.id: one.u for one in first.scores if one.u is not None}
    if first.v is None or first.head is None or not queries:
        return first
    context = Context(first.v, queries, first.head)
    found = answers.fused(context)
    told: dict[str, Kept] = {}
    failed: dict[str, ServerError] = {}
    for name in queries:
        value = found.get(name)
        if value is None or not math.isfinite(value):
            failed[name] = _not_finite(name, value)
        else:
            told[name] = Kept(kept[name].tokens, head=first.head, fused=value)
    second: ScoreResult | None = None
    if told:
        # By number: all samples of a call get one version, whatever has become live meanwhile.
        second = yield _calls.score(
            [one for one in sent if one.id in told],
            run=run,
            head=first.head,
            branch=None,
            wire_dtype=wire_dtype,
            kept=told,
        )
    scored = {one.id: one for one in second.scores} if second is not None else {}
    return replace(
        first,
        v=None,
        scores=tuple(_final(one, scored, failed) for one in first.scores),
        context=context,
    )


def align(
    run: str,
    feedback: Literal["split"] | Answers,
    context: Context | None,
    *,
    step: int,
    groups: Iterable[Group],
    branch: str | None,
    anchors: Iterable[AnchorStates],
    progress: _calls.Progress | None,
    wire_dtype: WireDtype,
) -> Talk[AlignResult]:
    """Send c and j, and answer what the server asks until it has its verdict."""
    step_groups = [replace(group, samples=list(group.samples)) for group in groups]
    pairs = list(anchors)
    answers = States.of_step(step_groups, pairs) if feedback == "split" else feedback
    tokens = answers.tokens()
    pooled = {} if context is None else answers.pooled(context)
    kept = {name: Kept(count) for name, count in tokens.items()}
    for group in step_groups:
        for one in group.samples:
            if one.id in tokens:
                kept[one.id] = Kept(
                    _tokens(one, tokens),
                    head=None if context is None or one.id not in pooled else context.head,
                    pooled=pooled.get(one.id),
                )
    begin = _calls.align(
        run,
        step=step,
        groups=step_groups,
        branch=branch,
        anchors=pairs,
        progress=progress,
        wire_dtype=wire_dtype,
        kept=kept,
    )
    call: _calls.Call[Any] = begin
    for _ in range(ROUNDS):
        try:
            answer: AlignResult | AlignPending = yield call
        except ServerError as error:
            if error.code != Code.UNKNOWN_TICKET:
                raise
            # Timed out, or the server restarted, or this reply came twice: the same align again
            # goes on where it is, finds its answer, or begins anew.
            call = begin
            continue
        if isinstance(answer, AlignResult):
            return answer
        call = _reply(run, answer, answers)
    raise ProtocolError(f"the align of step {step} asked more than {ROUNDS} times")


def _reply(run: str, pending: AlignPending, answers: Answers) -> _calls.Call[Any]:
    replies: list[dict[str, object]] = []
    for question in pending.questions:
        asked = Context(question.v, {one.id: one.u for one in question.queries}, question.head)
        if question.want == "pooled":
            values = [
                {"id": name, "pooled": base64.b64encode(value).decode()}
                for name, value in answers.pooled(asked).items()
            ]
        else:
            values = [
                {"id": name, "fused": value}
                for name, value in answers.fused(asked).items()
                if math.isfinite(value)
            ]
        replies.append({"values": values})
    return _calls.reply_align(run, pending.ticket, replies)


def _tokens(sample: Sample, tokens: Mapping[str, int]) -> int:
    """Of prompt + response: as stated, or by the states (one more where the last has none)."""
    if sample.tokens is not None:
        return sample.tokens
    return tokens[sample.id] + (sample.last_token is False)


def _final(one: Score, scored: Mapping[str, Score], failed: Mapping[str, ServerError]) -> Score:
    if one.id in failed:
        return replace(one, u=None, error=failed[one.id])
    found = scored.get(one.id)
    if found is None:
        return one
    took = (one.feedback_bytes or 0) + (found.feedback_bytes or 0)
    return replace(found, feedback_bytes=took)


def _not_finite(name: str, value: float | None) -> ServerError:
    said = "nobody holds them" if value is None else f"v·c is {value}"
    return server_error(
        {
            "code": Code.FEEDBACK_NOT_FINITE if value is not None else Code.FEEDBACK_MISSING,
            "message": f"hidden states of sample {name!r}: {said}; nothing was sent",
            "field": "feedback",
        }
    )


def drive(talk: Talk[T], send: Callable[[_calls.Call[Any]], Any]) -> T:
    """Run a talk with a blocking client."""
    try:
        call = next(talk)
        while True:
            try:
                result = send(call)
            except ServerError as error:
                call = talk.throw(error)
            else:
                call = talk.send(result)
    except StopIteration as done:
        return done.value
