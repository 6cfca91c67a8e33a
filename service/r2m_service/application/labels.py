"""The use cases around outside labels: take them, and list what waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.contract import (
    MAX_LISTED,
    KeptSampleList,
    KeptSampleOut,
    LabelIn,
    LabelOut,
    LabelsAnswer,
    LabelsRequest,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.label_port import LabelStore
from r2m_service.application.lookup import audit_out, find_run, timestamp
from r2m_service.application.ports import (
    Registry,
)
from r2m_service.application.samples import error_out
from r2m_service.application.usage import Usage
from r2m_service.domain.labels import KeptSample, Label

ALARM = "the audited gap raised its alarm: rewards run ahead of outside grades"


class Labels:
    """Outside labels of marked samples."""

    def __init__(
        self, registry: Registry, labels: LabelStore, engine: Engine, usage: Usage
    ) -> None:
        self._usage = usage
        self._registry = registry
        self._labels = labels
        self._engine = engine

    async def add(self, name: str, request: LabelsRequest) -> LabelsAnswer:
        """Take labels; each gets its own answer, and a bad one costs no other.

        Raises:
            Problem: unknown_run, run_archived, backbone_mismatch, storage_failed.
        """
        state = await find_run(self._registry, name)
        state.run.require_open(self._engine.info)
        named = {one for label in request.labels for one in _named(label)}
        kept = await asyncio.to_thread(self._labels.kept_samples, name, named)
        now = datetime.now(UTC)
        answers: list[LabelOut] = []
        good: list[tuple[int, Label]] = []
        for place, label in enumerate(request.labels):
            try:
                checked = _checked(label, place, kept, now)
            except Problem as problem:
                answers.append(LabelOut(id=(_named(label) or [""])[0], error=error_out(problem)))
                continue
            good.append((place, checked))
            answers.append(LabelOut(id=checked.sample, use=kept[checked.sample].use))
        before, audit = await asyncio.to_thread(
            self._labels.add_labels,
            name,
            [label for _, label in good],
            freeze_on_alarm=ALARM if state.run.method.freeze_on_alarm else None,
        )
        taken: list[str] = []
        for (place, label), earlier in zip(good, before, strict=True):
            if earlier is None:
                taken.append(kept[label.sample].use)
                continue
            if earlier.grade == label.grade:
                answers[place].known = True
                continue
            problem = Problem(
                Code.LABEL_CONFLICT,
                f"sample {label.sample[:80]!r} has the grade {earlier.grade:g} already; a label "
                "stays as it came first",
                field=f"labels[{place}].grade",
            )
            answers[place] = LabelOut(id=label.sample, error=error_out(problem))
        self._usage.labelled(name, taken)
        waiting = await asyncio.to_thread(self._labels.waiting_samples, name)
        return LabelsAnswer(
            run=name, labels=answers, audit=audit_out(audit, waiting), advice=audit.advice
        )

    async def list(
        self, name: str, *, after: int = 0, limit: int = 100, waiting: bool = False
    ) -> KeptSampleList:
        """Kept samples, oldest first.

        Raises:
            Problem: unknown_run, invalid_request.
        """
        if not 1 <= limit <= MAX_LISTED:
            raise Problem(
                Code.INVALID_REQUEST, f"limit is between 1 and {MAX_LISTED}", field="limit"
            )
        if not 0 <= after < 2**63:
            raise Problem(Code.INVALID_REQUEST, "after is between 0 and 2**63 - 1", field="after")
        await find_run(self._registry, name)
        found = await asyncio.to_thread(
            self._labels.list_samples, name, after=after, limit=limit, waiting=waiting
        )
        return KeptSampleList(
            samples=[_sample_out(number, sample, labels) for number, sample, labels in found],
            next=found[-1][0] if len(found) == limit else None,
        )

    async def waiting(self, name: str) -> int:
        """How many kept samples have no label."""
        return await asyncio.to_thread(self._labels.waiting_samples, name)


def _named(label: LabelIn) -> list[str]:
    """Ids that a label speaks of, the one that it is kept under first."""
    return [one for one in (label.id, label.chosen, label.rejected) if one is not None]


def _checked(given: LabelIn, place: int, kept: Mapping[str, KeptSample], now: datetime) -> Label:
    """A label as it is kept.

    Raises:
        Problem: invalid_request or unknown_sample.
    """
    path = f"labels[{place}]"
    graded = given.id is not None and given.grade is not None
    paired = given.chosen is not None and given.rejected is not None
    if graded == paired or len(_named(given)) != (1 if graded else 2):
        raise Problem(
            Code.INVALID_REQUEST,
            "a label is `id` and `grade`, or `chosen` and `rejected`",
            field=path,
        )
    for key, name in (("id", given.id), ("chosen", given.chosen), ("rejected", given.rejected)):
        if name is not None and name not in kept:
            raise Problem(
                Code.UNKNOWN_SAMPLE,
                f"no sample {name[:80]!r} waits for a label: it was not marked, or is not kept "
                "any more",
                field=f"{path}.{key}",
            )
    if graded:
        assert given.id is not None
        return Label(given.id, given.grade, None, given.source, now)
    assert given.chosen is not None
    assert given.rejected is not None
    one, other = kept[given.chosen], kept[given.rejected]
    if one.id == other.id or one.group != other.group:
        raise Problem(
            Code.INVALID_REQUEST,
            "chosen and rejected are two different samples of one group",
            field=path,
        )
    return Label(one.id, None, other.id, given.source, now)


def _sample_out(number: int, sample: KeptSample, labels: list[Label]) -> KeptSampleOut:
    return KeptSampleOut(
        number=number,
        id=sample.id,
        group=sample.group,
        use=sample.use,
        head=sample.head,
        branch=sample.branch,
        reward=sample.reward,
        vanilla_reward=sample.vanilla_reward,
        text=dict(sample.text),
        at=timestamp(sample.at),
        labels=[_label_out(label) for label in labels],
    )


def _label_out(label: Label) -> LabelIn:
    if label.grade is not None:
        return LabelIn(id=label.sample, grade=label.grade, source=label.source)
    return LabelIn(chosen=label.sample, rejected=label.loser, source=label.source)
