"""The end of an align: judge the candidate, store its files, commit the step."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.align_answer import (
    counts,
    drift_out,
    evidence_out,
    notes,
    without_non_finite,
)
from r2m_service.application.align_context import AlignContext
from r2m_service.application.align_job import GroupResult, Update
from r2m_service.application.contract import AlignAnswer, GroupCounts, LossOut, SampleError
from r2m_service.application.controls import controls_out
from r2m_service.application.judging import Judged, judge
from r2m_service.application.lessons import Lesson
from r2m_service.application.lookup import next_anchors
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.timings import timings
from r2m_service.domain.gate import Decision, decide, measure_drift
from r2m_service.domain.method import Gate
from r2m_service.domain.runs import Branch, Head, StepCommit

METRICS = {"loss", "groups", "drift", "sigma", "gradient_norm", "anchors", "evidence", "controls"}
"""What of an answer stays with its candidate."""


@dataclass(frozen=True, slots=True)
class Afterwards:
    """What a step changes beside the live head: the fields of StepCommit of the same names."""

    rejections: int
    freeze: str | None = None
    reference: int | None = None
    look: bool = False


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the step's feedback took.

    Attributes:
        bytes: both ways.
        untold: how often the trainer was asked about the candidate and did not say.
    """

    bytes: int = 0
    untold: int = 0


class Conclusion:
    """Judges and commits. Blocking: runs in a worker thread."""

    def __init__(self, registry: Registry, blobs: Blobs) -> None:
        self._registry = registry
        self._blobs = blobs

    def freeze(self, context: AlignContext, groups: int) -> AlignAnswer:
        """The answer of a frozen run: the step advances, nothing else does."""
        parent = context.parent
        answer = AlignAnswer(
            run=context.run.name,
            step=context.step,
            branch=context.branch.name,
            head=parent.number,
            parent=parent.number,
            accepted=False,
            verdict="frozen",
            reason=context.run.frozen or "",
            omega=parent.omega,
            loss=LossOut(),
            groups=GroupCounts(
                used=0,
                skipped=groups,
                pseudo=0,
                labelled=0,
                skipped_because={"frozen": groups} if groups else {},
            ),
            anchors_step=next_anchors(context.state, context.step),
            advice=context.state.audit.advice,
        )
        self._commit(context, Lesson(), None, answer, Afterwards(context.branch.rejections))
        return answer

    def conclude(
        self,
        context: AlignContext,
        lesson: Lesson,
        update: Update,
        results: list[GroupResult],
        errors: list[SampleError],
        feedback: Feedback,
    ) -> AlignAnswer:
        """Judge, store the candidate, commit. Blocking: runs to its end even if the caller left."""
        gate = context.run.method.gate
        drift, judged = None, Judged()
        if update.weights is None:
            decision = Decision("skipped", "no group could be used" if results else "no groups")
        else:
            if update.finite and gate.checks_drift:
                drift = measure_drift(
                    [one.candidate for one in update.measured],
                    [one.reference for one in update.measured],
                )
            judged = judge(context, lesson, update)
            decision = decide(
                gate,
                finite=update.finite,
                drift=drift,
                asked=sum(len(one.rewards) for one in update.measured),
                anchors=judged.verdict,
                due=lesson.due,
            )
        number = None
        if update.weights is not None:
            number = self._registry.next_head_number(context.run.name)
        parent = context.parent
        answer = AlignAnswer(
            run=context.run.name,
            step=context.step,
            branch=context.branch.name,
            head=number if decision.moves and number is not None else parent.number,
            candidate=number,
            parent=parent.number,
            accepted=decision.moves,
            verdict=decision.verdict,
            reason=decision.reason,
            omega=context.candidate_omega if decision.moves else parent.omega,
            loss=LossOut(bt=update.bt, gre=update.gre, kl=update.kl, total=update.total),
            groups=counts(update, results, withheld=len(lesson.withheld)),
            drift=drift_out(context.reference.number, drift),
            sigma=update.sigma,
            gradient_norm=update.gradient_norm,
            errors=[*errors, *lesson.errors, *judged.errors],
            notes=notes(update, untold=feedback.untold),
            anchors=judged.answer,
            anchors_step=next_anchors(context.state, context.step),
            evidence=evidence_out(update, results),
            controls=controls_out(
                update,
                parent,
                context.state.run.method,
                accepted=decision.moves,
                withheld=len(lesson.withheld),
            ),
            advice=context.state.audit.advice,
            feedback_bytes=feedback.bytes or None,
        )
        answer = without_non_finite(answer)
        superior = decision.moves and judged.verdict is not None and judged.verdict.superior
        afterwards = Afterwards(
            rejections=_rejections(context.branch, decision),
            freeze=_harm(context, judged) or _freeze(gate, context.branch, decision),
            reference=number if superior and gate.reference == "anchors" else None,
            look=judged.verdict is not None,
        )
        self._commit(context, lesson, update, answer, afterwards)
        return answer

    def _commit(
        self,
        context: AlignContext,
        lesson: Lesson,
        update: Update | None,
        answer: AlignAnswer,
        afterwards: Afterwards,
    ) -> None:
        now = datetime.now(UTC)
        candidate = None
        stored: list[str] = []
        committing = False
        try:
            if update and update.weights is not None and answer.candidate is not None:
                # The number is not sure before the commit, so it does not name the file.
                stem = f"{context.run.key}/{uuid.uuid4().hex}"
                optimizer = None
                with timings().taking("registry.files", bytes=len(update.weights)):
                    weights = self._blobs.put(f"{stem}.safetensors", update.weights)
                    stored.append(weights.key)
                    if answer.accepted and update.optimizer is not None:
                        optimizer = self._blobs.put(
                            f"{stem}.optimizer.safetensors", update.optimizer
                        )
                        stored.append(optimizer.key)
                candidate = Head(
                    number=answer.candidate,
                    parent=context.parent.number,
                    branch=context.branch.name,
                    step=context.step,
                    t=context.parent.t + 1,
                    omega=context.candidate_omega,
                    reference=context.reference.number,
                    accepted=answer.accepted,
                    verdict=answer.verdict,
                    reason=answer.reason,
                    metrics=answer.model_dump(
                        include=METRICS,
                        exclude_none=True,
                    ),
                    created_at=now,
                    weights=weights,
                    optimizer=optimizer,
                )
            commit = StepCommit(
                run=context.run.name,
                branch=context.branch.name,
                step=context.step,
                parent=context.parent.number,
                live=answer.head,
                candidate=candidate,
                content_hash=context.hash,
                answer=answer.model_dump_json(exclude_none=True),
                at=now,
                rejections=afterwards.rejections,
                freeze=afterwards.freeze,
                reference=afterwards.reference,
                look=afterwards.look,
                trained=lesson.trained if candidate is not None else frozenset(),
            )
            committing = True
            with timings().taking("registry.commit", parent=commit.parent, live=commit.live):
                self._registry.commit_step(commit)
        except Problem as problem:
            # Only what surely was not committed may go; after a storage failure nobody knows.
            if not committing or problem.code in (Code.ALIGN_CONFLICT, Code.RUN_ARCHIVED):
                for key in stored:
                    # Otherwise the next start removes it.
                    with suppress(Problem):
                        self._blobs.delete(key)
            raise


def _rejections(branch: Branch, decision: Decision) -> int:
    """In a row; a step that could not tell neither adds to them nor ends them."""
    if decision.moves:
        return 0
    return branch.rejections + (decision.verdict == "rejected")


def _harm(context: AlignContext, judged: Judged) -> str | None:
    """Steps between looks go by drift alone: what they did to live shows at the next look."""
    if judged.verdict is None or not judged.verdict.live_harmed:
        return None
    return (
        f"the anchors prove live head {context.parent.number} worse than reference head "
        f"{context.reference.number}: go back with rollback, then lift the freeze"
    )


def _freeze(gate: Gate, branch: Branch, decision: Decision) -> str | None:
    rejections = _rejections(branch, decision)
    if gate.freeze_after is None or decision.verdict != "rejected":
        return None
    if rejections < gate.freeze_after:
        return None
    return f"{rejections} candidates in a row were rejected, the last one: {decision.reason}"
