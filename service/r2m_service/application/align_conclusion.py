"""The end of an align: judge the candidate, store its files, commit the step."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.align_answer import counts, drift_out, notes, without_non_finite
from r2m_service.application.contract import AlignAnswer, LossOut, SampleError
from r2m_service.application.ports import Blobs, GroupResult, Registry, Update
from r2m_service.domain.gate import Decision, decide, measure_drift
from r2m_service.domain.runs import Branch, Head, Run, RunState, StepCommit


@dataclass(frozen=True, slots=True)
class AlignContext:
    """What an align starts from."""

    state: RunState
    branch: Branch
    parent: Head
    reference: Head
    step: int
    hash: str

    @property
    def run(self) -> Run:
        """The run."""
        return self.state.run

    @property
    def candidate_omega(self) -> float:
        """What the candidate will score with."""
        # The candidate will stand after t + 1 accepted updates and scores with ω of the next.
        return self.run.method.omega.at(self.parent.t + 2)


class Conclusion:
    """Judges and commits. Blocking: runs in a worker thread."""

    def __init__(self, registry: Registry, blobs: Blobs) -> None:
        self._registry = registry
        self._blobs = blobs

    def conclude(
        self,
        context: AlignContext,
        update: Update,
        results: list[GroupResult],
        errors: list[SampleError],
    ) -> AlignAnswer:
        """Judge, store the candidate, commit. Blocking: runs to its end even if the caller left."""
        drift = None
        if update.weights is None:
            decision = Decision("skipped", "no group could be used" if results else "no groups")
        else:
            if update.finite and context.run.method.gate.checks_drift:
                drift = measure_drift(update.candidate_rewards, update.reference_rewards)
            decision = decide(context.run.method.gate, finite=update.finite, drift=drift)
        accepted = decision.verdict == "accepted"
        number = None
        if update.weights is not None:
            number = self._registry.next_head_number(context.run.name)
        parent = context.parent
        answer = AlignAnswer(
            run=context.run.name,
            step=context.step,
            branch=context.branch.name,
            head=number if accepted and number is not None else parent.number,
            candidate=number,
            parent=parent.number,
            accepted=accepted,
            verdict=decision.verdict,
            reason=decision.reason,
            omega=context.candidate_omega if accepted else parent.omega,
            loss=LossOut(bt=update.bt, gre=update.gre, kl=update.kl, total=update.total),
            groups=counts(update, results),
            drift=drift_out(context.reference.number, drift),
            sigma=update.sigma,
            gradient_norm=update.gradient_norm,
            errors=errors,
            notes=notes(update),
        )
        answer = without_non_finite(answer)
        self._commit(context, update, answer)
        return answer

    def _commit(self, context: AlignContext, update: Update, answer: AlignAnswer) -> None:
        now = datetime.now(UTC)
        candidate = None
        stored: list[str] = []
        committing = False
        try:
            if update.weights is not None and answer.candidate is not None:
                # The number is not sure before the commit, so it does not name the file.
                stem = f"{context.run.key}/{uuid.uuid4().hex}"
                weights = self._blobs.put(f"{stem}.safetensors", update.weights)
                stored.append(weights.key)
                optimizer = None
                if answer.accepted and update.optimizer is not None:
                    optimizer = self._blobs.put(f"{stem}.optimizer.safetensors", update.optimizer)
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
                        include={"loss", "groups", "drift", "sigma", "gradient_norm"},
                        exclude_none=True,
                    ),
                    created_at=now,
                    weights=weights,
                    optimizer=optimizer,
                )
            committing = True
            self._registry.commit_step(
                StepCommit(
                    run=context.run.name,
                    branch=context.branch.name,
                    step=context.step,
                    parent=context.parent.number,
                    live=answer.head,
                    candidate=candidate,
                    content_hash=context.hash,
                    answer=answer.model_dump_json(exclude_none=True),
                    at=now,
                )
            )
        except Problem as problem:
            # Only what surely was not committed may go; after a storage failure nobody knows.
            if not committing or problem.code in (Code.ALIGN_CONFLICT, Code.RUN_ARCHIVED):
                for key in stored:
                    # Otherwise the next start removes it.
                    with suppress(Problem):
                        self._blobs.delete(key)
            raise
