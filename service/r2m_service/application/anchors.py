"""Anchor sets: held-out gold pairs that judge candidates and never train."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.about import caller_name
from r2m_service.application.align_job import AnchorItems
from r2m_service.application.contract import (
    AnchorPairIn,
    AnchorsOut,
    AnchorsRequest,
    AnchorStates,
    SampleError,
    SampleIn,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.label_port import LabelStore
from r2m_service.application.lookup import anchors_out, find_run
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.samples import (
    error_out,
    items_of,
    prompt_hash,
    require_distinct,
    text_hash,
    text_of,
)
from r2m_service.application.scoring_items import Item
from r2m_service.domain.runs import AnchorSet, BlobRef, Change, Run, RunState

_SETS_HELD = 8


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A set's texts, by pair, and the hashes of its prompts."""

    pairs: dict[str, tuple[SampleIn, SampleIn]]
    prompts: frozenset[str]


class Anchors:
    """Put a set, see it, and bring it into an align."""

    def __init__(
        self, registry: Registry, labels: LabelStore, blobs: Blobs, engine: Engine
    ) -> None:
        self._registry = registry
        self._labels = labels
        self._blobs = blobs
        self._engine = engine
        self._held: dict[str, _Loaded] = {}

    async def put(self, name: str, request: AnchorsRequest) -> AnchorsOut:
        """Make these pairs the ones that judge; the same set again changes nothing.

        Raises:
            Problem: invalid_request (a tie, equal sides, hidden states, a prompt that was learnt
                from), duplicate_id, text_*, unknown_run, run_archived, backbone_mismatch,
                storage_failed.
        """
        state = await find_run(self._registry, name)
        state.run.require_open(self._engine.info)
        prompts = _checked(request.pairs)
        await self._require_texts(state.run, request.pairs)
        learnt = await asyncio.to_thread(self._labels.trained_among, name, set(prompts))
        for place, prompt in enumerate(prompts):
            if prompt in learnt:
                raise Problem(
                    Code.INVALID_REQUEST,
                    f"the run has learnt from an outside label of the prompt of pair "
                    f"{request.pairs[place].id[:80]!r}: it cannot judge any more",
                    field=f"pairs[{place}]",
                )
        data = await asyncio.to_thread(_to_json, request.pairs)
        made = await asyncio.to_thread(self._store, state, request, data)
        after = await find_run(self._registry, name)
        out = anchors_out(after)
        assert out is not None, made
        return out

    def _store(self, state: RunState, request: AnchorsRequest, data: bytes) -> AnchorSet:
        run = state.run
        file = self._blobs.put(f"{run.key}/anchors/{uuid.uuid4().hex}.json", data)
        if state.anchors is not None and state.anchors.file.sha256 == file.sha256:
            self._blobs.delete(file.key)
            self._mend(state.anchors.file, data)
            return state.anchors
        now = datetime.now(UTC)
        detail = {"pairs": len(request.pairs), "sha256": file.sha256}
        change = Change(now, "anchors", detail, request.reason, caller_name())
        return self._labels.put_anchors(
            run.name, pairs=len(request.pairs), file=file, at=now, change=change
        )

    def _mend(self, file: BlobRef, data: bytes) -> None:
        """Write a set's file again where it is lost: the looks at it stay counted."""
        try:
            self._blobs.get(file)
        except Problem as problem:
            if problem.code != Code.HEAD_DAMAGED:
                raise
            self._blobs.put(file.key, data)

    async def _require_texts(self, run: Run, pairs: Sequence[AnchorPairIn]) -> None:
        """Refuse a pair that could never be scored."""
        samples = [one for pair in pairs for one in (pair.chosen, pair.rejected)]
        for place, one in enumerate(await items_of(self._engine, run, samples, texts_alone=True)):
            if isinstance(one, Problem):
                side = "rejected" if place % 2 else "chosen"
                raise Problem(one.code, one.message, field=f"pairs[{place // 2}].{side}")

    async def get(self, name: str) -> AnchorsOut:
        """The set that judges. Raises Problem(unknown_run, no_anchors)."""
        found = anchors_out(await find_run(self._registry, name))
        if found is None:
            raise Problem(
                Code.NO_ANCHORS, f"run {name!r} has no anchors: PUT /v1/runs/{name}/anchors"
            )
        return found

    async def prompts(self, state: RunState) -> frozenset[str]:
        """Hashes of the prompts that judge."""
        return (await self._loaded(state)).prompts

    async def items(
        self, state: RunState, states: Sequence[AnchorStates]
    ) -> tuple[dict[str, AnchorItems], list[SampleError]]:
        """The pairs that can judge now, by id, and what is wrong with others.

        Under feedback `policy` those whose hidden states came along; else all.
        """
        loaded = await self._loaded(state)
        errors: list[SampleError] = []
        asked: list[tuple[str, SampleIn, SampleIn]] = []
        if state.run.feedback == "policy":
            for one in states:
                known = loaded.pairs.get(one.id)
                if known is None:
                    problem = Problem(
                        Code.UNKNOWN_ANCHOR, f"the run's anchor set has no pair {one.id[:80]!r}"
                    )
                    errors.append(SampleError(id=one.id, group=one.id, error=error_out(problem)))
                    continue
                asked.append(
                    (
                        one.id,
                        known[0].model_copy(update={"feedback": one.chosen.feedback}),
                        known[1].model_copy(update={"feedback": one.rejected.feedback}),
                    )
                )
        else:
            asked = [(pair, chosen, rejected) for pair, (chosen, rejected) in loaded.pairs.items()]
        samples = [sample for _, chosen, rejected in asked for sample in (chosen, rejected)]
        checked = await items_of(self._engine, state.run, samples)
        found: dict[str, AnchorItems] = {}
        for place, (pair, chosen, rejected) in enumerate(asked):
            a, b = checked[2 * place], checked[2 * place + 1]
            if isinstance(a, Item) and isinstance(b, Item):
                found[pair] = AnchorItems(a, b)
            for sample, one in ((chosen, a), (rejected, b)):
                if isinstance(one, Problem):
                    errors.append(SampleError(id=sample.id, group=pair, error=error_out(one)))
        return found, errors

    async def _loaded(self, state: RunState) -> _Loaded:
        if state.anchors is None:
            return _Loaded({}, frozenset())
        key = state.anchors.file.sha256
        held = self._held.get(key)
        if held is None:
            try:
                data = await asyncio.to_thread(self._blobs.get, state.anchors.file)
            except Problem as problem:
                if problem.code != Code.HEAD_DAMAGED:
                    raise
                raise Problem(
                    problem.code,
                    f"the anchors of run {state.run.name!r} are lost ({problem.message}): put the "
                    "same set again, or another one",
                ) from problem
            held = await asyncio.to_thread(_from_json, data)
            while len(self._held) >= _SETS_HELD:
                self._held.pop(next(iter(self._held)))
            self._held[key] = held
        return held


def _checked(pairs: Sequence[AnchorPairIn]) -> list[str]:
    """The pairs' prompts, hashed.

    Raises:
        Problem: duplicate_id or invalid_request.
    """
    require_distinct(((pair.id, f"pairs[{n}].id") for n, pair in enumerate(pairs)), what="pairs")
    prompts: list[str] = []
    for place, pair in enumerate(pairs):
        path = f"pairs[{place}]"
        for side, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            if sample.feedback is not None:
                raise Problem(
                    Code.INVALID_REQUEST,
                    "an anchor has no hidden states: they come with align, by the policy of then",
                    field=f"{path}.{side}.feedback",
                )
        if text_hash(pair.chosen) == text_hash(pair.rejected):
            raise Problem(
                Code.INVALID_REQUEST, "both sides of the pair are the same text", field=path
            )
        gold = pair.gold
        if gold and not (len(gold) == 2 and gold[0] > gold[1]):
            tie = len(gold) == 2 and gold[0] == gold[1]
            raise Problem(
                Code.INVALID_REQUEST,
                "a tie judges nothing: leave the pair out"
                if tie
                else "gold is [of chosen, of rejected], the first greater",
                field=f"{path}.gold",
            )
        prompts.append(prompt_hash(pair.chosen))
    return prompts


def _to_json(pairs: Sequence[AnchorPairIn]) -> bytes:
    rows = [
        {
            "id": pair.id,
            "chosen": {"id": f"{pair.id}/chosen"[-256:], **text_of(pair.chosen)},
            "rejected": {"id": f"{pair.id}/rejected"[-256:], **text_of(pair.rejected)},
        }
        for pair in pairs
    ]
    return json.dumps(rows).encode()


def _from_json(data: bytes) -> _Loaded:
    pairs = {
        row["id"]: (
            SampleIn.model_validate(row["chosen"]),
            SampleIn.model_validate(row["rejected"]),
        )
        for row in json.loads(data)
    }
    return _Loaded(pairs, frozenset(prompt_hash(chosen) for chosen, _ in pairs.values()))
