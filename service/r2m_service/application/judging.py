"""What the anchors say of a candidate, for the gate and for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2m.errors import Problem
from r2m_service.application.align_context import AlignContext
from r2m_service.application.align_job import AnchorMargins, Update
from r2m_service.application.contract import AnchorsJudged, PairedOut, SampleError
from r2m_service.application.lessons import Lesson
from r2m_service.application.samples import error_out
from r2m_service.domain.anchors import AnchorVerdict, Paired, judge_anchors


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of the anchors.

    Attributes:
        verdict, answer: None where no pair could be judged: that is no look.
        errors: of pairs that could not be judged.
    """

    verdict: AnchorVerdict | None = None
    answer: AnchorsJudged | None = None
    errors: Sequence[SampleError] = ()


def judge(context: AlignContext, lesson: Lesson, update: Update) -> Judged:
    """The candidate against reference and live, on the pairs that all three have rewards for."""
    anchors, gate = context.state.anchors, context.run.method.gate
    margins: list[AnchorMargins] = []
    errors: list[SampleError] = []
    for pair, found in zip(lesson.anchors, update.anchors, strict=False):
        if isinstance(found, Problem):
            errors.append(SampleError(id=pair, group=pair, error=error_out(found)))
        else:
            margins.append(found)
    if anchors is None or not margins:
        return Judged(errors=errors)
    verdict = judge_anchors(
        candidate=[one.candidate for one in margins],
        reference=[one.reference for one in margins],
        live=[one.live for one in margins],
        margin=gate.anchors_margin,
        alpha=gate.anchors_alpha,
        looks=gate.anchors_looks,
        look=anchors.looks + 1,
    )
    low, high = verdict.wilson
    answer = AnchorsJudged(
        set=anchors.number,
        pairs=verdict.pairs,
        look=anchors.looks + 1,
        accuracy=verdict.accuracy,
        wilson=[low, high],
        reference=_paired(context.reference.number, verdict.reference),
        live=_paired(context.parent.number, verdict.live),
    )
    return Judged(verdict, answer, errors)


def _paired(head: int, paired: Paired) -> PairedOut:
    return PairedOut(
        head=head,
        better=paired.better,
        worse=paired.worse,
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        accuracy=paired.accuracy,
    )
