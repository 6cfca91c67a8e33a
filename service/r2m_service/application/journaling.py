"""From scores and aligns to the journal's entries."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from r2m_service.application.align_context import AlignContext
from r2m_service.application.align_job import AlignGroup, MeasuredGroup, Update
from r2m_service.application.contract import AlignAnswer, SampleIn
from r2m_service.application.journal_port import (
    AlignedRow,
    AlignedStep,
    HeadName,
    Journal,
    ScoredRow,
)
from r2m_service.application.lessons import Lesson
from r2m_service.application.scoring_items import HeadSource, Item, Scored
from r2m_service.domain.runs import Head

logger = logging.getLogger(__name__)


class Journaling:
    """Tells a journal, where there is one, what was answered.

    Args:
        journal: None: nothing is kept.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    async def scored(
        self,
        run: str,
        branch: str,
        head: int,
        source: HeadSource,
        samples: Sequence[SampleIn],
        items: Sequence[Item],
        results: Sequence[Scored],
    ) -> None:
        """Rewards of one call, before they are answered: what a trainer has, the journal has."""
        if self._journal is None or not results:
            return
        by = HeadName(run, branch, head, source.key.sha256, source.key.omega)
        rows = [
            ScoredRow(
                id=sample.id,
                group=sample.group,
                reward=result.reward,
                vanilla_reward=result.vanilla_reward,
                trace=result.trace,
                feedback=item.feedback if self._journal.full else None,
            )
            for sample, item, result in zip(samples, items, results, strict=True)
            if result.trace is not None
        ]
        await asyncio.to_thread(self._journal.scored, by, datetime.now(UTC), rows)

    def aligned(
        self,
        context: AlignContext,
        groups: Sequence[AlignGroup],
        lesson: Lesson,
        update: Update,
        answer: AlignAnswer,
    ) -> None:
        """An align that was committed. Blocking: runs in a worker thread."""
        if self._journal is None:
            return
        rows: list[AlignedRow] = []
        used = [(one, groups[one.place], False) for one in update.measured]
        used += [(one, lesson.replay[one.place], True) for one in update.again]
        for number, (measured, group, replayed) in enumerate(used):
            rows += self._rows(number, measured, group, replayed=replayed)
        step = AlignedStep(
            step=context.step,
            parent=_name(context.run.name, context.branch.name, context.parent),
            reference=context.reference.number,
            candidate=answer.candidate,
            live=answer.head,
            verdict=answer.verdict,
            t=context.parent.t,
            candidate_omega=context.candidate_omega,
            method=json.dumps(asdict(context.run.method)),
            answer=answer.model_dump_json(exclude_none=True),
            rows=rows,
        )
        self._journal.aligned(datetime.now(UTC), step)

    def _rows(
        self, number: int, measured: MeasuredGroup, group: AlignGroup, *, replayed: bool
    ) -> list[AlignedRow]:
        full = self._journal is not None and self._journal.full
        preferred = measured.preferred or (-1, -1)
        return [
            AlignedRow(
                group=number,
                replayed=replayed,
                label=(place == preferred[0]) - (place == preferred[1]),
                reward=measured.rewards[place],
                reference_fused=measured.reference_parts[place][0],
                reference_base=measured.reference_parts[place][1],
                trace=trace,
                feedback=group.items[place].feedback if full else None,
            )
            for place, trace in enumerate(measured.traces)
        ]


def _name(run: str, branch: str, head: Head) -> HeadName:
    return HeadName(run, branch, head.number, head.weights.sha256, head.omega)
