"""What one align asks about hidden states that stay with the trainer, and what it makes of replies.

Before it learns: c and j under the parent, where the trainer computed them with another head's u
and v or not at all, and v·c under the reference. Then, by the engine: v·c under the candidate, and
the anchors under each head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from r2m.errors import Code, Problem
from r2m.tensors import TensorValue, decode_base64
from r2m_service.application.align_context import AlignContext
from r2m_service.application.align_job import AlignGroup, AnchorItems, Asked, Told
from r2m_service.application.contract import QueryOut, QuestionOut, ReplyIn, ReplyValueIn
from r2m_service.application.dialogue import Dialogue
from r2m_service.application.engine_port import Engine
from r2m_service.application.feedback import pooled_of
from r2m_service.application.scoring_items import HeadSource, Item, Queried, Split, Vector
from r2m_service.application.usage import NUMBER_BYTES

Pooled = npt.NDArray[np.float32]

MAX_QUESTION_BYTES = 256 << 20
"""Of u in all that one align may come to ask at once: it is held until the trainer answers."""


class Asking:
    """The questions of one align.

    Args:
        parent, reference: the heads of the context.

    Attributes:
        bytes: that questions and replies took so far.
        untold: how often v·c under the candidate was asked for and did not come.
    """

    def __init__(
        self,
        context: AlignContext,
        dialogue: Dialogue,
        engine: Engine,
        *,
        parent: HeadSource,
        reference: HeadSource,
    ) -> None:
        self.bytes = 0
        self.untold = 0
        self._context = context
        self._dialogue = dialogue
        self._engine = engine
        self._parent = parent
        self._reference = reference

    async def before(
        self, groups: Mapping[int, AlignGroup], anchors: Iterable[AnchorItems]
    ) -> dict[int, AlignGroup]:
        """The groups with all that the loss needs of them, as far as the trainer tells it.

        Raises:
            Problem: too_large, where more would have to be asked than may be held.
        """
        kept = [item for group in groups.values() for item in group.items if item.split is not None]
        judging = sum(
            side.split is not None for pair in anchors for side in (pair.chosen, pair.rejected)
        )
        self._require_few(len(kept), judging)
        if not kept:
            return dict(groups)
        number = self._context.parent.number
        stale = [item for item in kept if item.split is not None and _stale(item.split, number)]
        questions: list[QuestionOut] = []
        if stale:
            questions.append(await self._question(stale, self._parent, number, pooled=True))
        reference = self._context.reference.number
        if reference != number:
            question = await self._question(kept, self._reference, reference, pooled=False)
            if any(question.v):  # version 0 reads no states
                questions.append(question)
        told = await self._ask(questions)
        pooled: dict[str, Pooled] = {}
        fused: Told = {}
        for question, reply in zip(questions, told, strict=True):
            if question.want == "pooled":
                pooled = self._pooled(reply)
            else:
                fused = _fused(reply)
        return {
            place: replace(
                group,
                items=[_completed(item, number, pooled, fused) for item in group.items],
            )
            for place, group in groups.items()
        }

    async def gate(self, asked: Sequence[Asked]) -> list[Told]:
        """v·c of what the engine asks."""
        context = self._context
        numbers = {
            "candidate": None,
            "reference": context.reference.number,
            "live": context.parent.number,
        }
        questions = [
            _question(one.because, "fused", numbers[one.head], one.v, one.queries) for one in asked
        ]
        found = [_fused(reply) for reply in await self._ask(questions)]
        for one, told in zip(asked, found, strict=True):
            if one.because == "gate":
                self.untold += len(one.queries.keys() - told.keys())
        return found

    def _require_few(self, samples: int, anchors: int) -> None:
        width = self._context.run.policy.hidden_size
        # At once: all samples under two heads before, or under one with the anchors under three.
        asked = max(2 * samples, samples + 3 * anchors)
        most = MAX_QUESTION_BYTES // (4 * width)
        if asked > most:
            raise Problem(
                Code.TOO_LARGE,
                f"states of {samples} samples and {anchors} anchors stay with the trainer: it "
                f"would be asked {asked} times at once; at D_p = {width} {most} may be: send fewer",
                field="groups",
            )

    async def _question(
        self, items: Sequence[Item], source: HeadSource, number: int, *, pooled: bool
    ) -> QuestionOut:
        blank = [replace(item, split=_asked_again(item.split)) for item in items]
        queries: dict[str, Vector] = {}
        for item, found in zip(items, await self._engine.score(source, blank), strict=True):
            # What is wrong with a text shows when the engine comes to it.
            if isinstance(found, Queried) and item.split is not None:
                queries[item.split.id] = found.u
        v = await self._engine.direction(source)
        if pooled:
            return _question("stale_context", "pooled", number, v, queries)
        return _question("reference", "fused", number, v, queries)

    async def _ask(self, questions: Sequence[QuestionOut]) -> Sequence[ReplyIn]:
        if not questions:
            return []
        for question in questions:
            self.bytes += len(question.v) + sum(len(one.u) for one in question.queries)
        replies = await self._dialogue.ask(questions)
        for reply in replies:
            self.bytes += sum(NUMBER_BYTES for one in reply.values if one.fused is not None)
        return replies

    def _pooled(self, reply: ReplyIn) -> dict[str, Pooled]:
        width = self._context.run.policy.hidden_size
        found: dict[str, Pooled] = {}
        for value in reply.values:
            try:
                found[value.id] = _matrix(value, width)
            except Problem:
                continue  # its sample goes unanswered
            self.bytes += found[value.id].nbytes
        return found


def _stale(split: Split, head: int) -> bool:
    return split.pooled is None or split.head != head


def _asked_again(split: Split | None) -> Split | None:
    return None if split is None else replace(split, fused=None)


def _question(
    because: str, want: str, head: int | None, v: Vector, queries: Mapping[str, Vector]
) -> QuestionOut:
    return QuestionOut.model_validate(
        {
            "because": because,
            "want": want,
            "head": head,
            "v": v.tobytes(),
            "queries": [QueryOut(id=name, u=u.tobytes()) for name, u in queries.items()],
        }
    )


def _fused(reply: ReplyIn) -> Told:
    return {
        one.id: one.fused
        for one in reply.values
        if one.fused is not None and math.isfinite(one.fused)
    }


def _matrix(value: ReplyValueIn, width: int) -> Pooled:
    given = value.pooled
    data = decode_base64(given) if isinstance(given, str) else given or b""
    tensor = TensorValue("float32", (2, width), data)
    tensor.check()
    return pooled_of(tensor)


def _completed(item: Item, head: int, pooled: Mapping[str, Pooled], fused: Told) -> Item:
    split = item.split
    if split is None:
        return item
    if _stale(split, head):
        # What another head's query pooled would be another gradient: without the right ones the
        # sample has none.
        split = replace(split, head=head, pooled=pooled.get(split.id))
    return replace(item, split=replace(split, reference=fused.get(split.id)))
