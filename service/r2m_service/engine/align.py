"""One update as a chain of device turns, each at most one group's work.

1. every group of the step and of the replay: RTEs, c and j under the parent's weights, c under the
   reference's;
2. once: labels, loss, gradient; then the optimizer, tensor by tensor;
3. every group, where the gate asks for drift: c under the candidate's weights;
4. every anchor pair: its margin under candidate, reference and parent.

Between 2 and 3 the trainer is asked about hidden states that stay with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from r2m.errors import Problem
from r2m_service.application.align_job import (
    AlignGroup,
    AlignJob,
    AnchorItems,
    AnchorMargins,
    Asked,
    GroupResult,
    Told,
    Update,
)
from r2m_service.engine.align_groups import AlignHeads, Group, GroupPasses
from r2m_service.engine.controls import Controls
from r2m_service.engine.measuring import Errors, Measuring
from r2m_service.engine.questions import Questions, kept_by_trainer
from r2m_service.engine.stepping import adamw_step, loss_by_reward
from r2m_service.modeling.head import Head
from r2m_service.modeling.loss import Loss, sigma
from r2m_service.modeling.update import AdamWStep, Moments, Step


class Aligner:
    """Computes one align. Call the turns in order, each on the device thread.

    Args:
        moments: the optimizer's state that goes with the parent.
        vanilla: the frozen reward model's own rewards of RTEs.
        trace: tell what the rewards were made of, for the journal.
    """

    def __init__(
        self,
        job: AlignJob,
        *,
        heads: AlignHeads,
        moments: Moments,
        measuring: Measuring,
        vanilla: Callable[[Tensor], Tensor],
        trace: bool = False,
    ) -> None:
        self._job = job
        self._parent = heads.parent
        self._moments = moments
        self._passes = GroupPasses(
            heads,
            measuring,
            omega=job.parent.key.omega,
            candidate_omega=job.candidate_omega,
            vanilla=vanilla,
            trace=trace,
        )
        self._omega = job.parent.key.omega
        self._results: list[GroupResult] = []
        self._used: list[Group] = []
        self._loss: Loss | None = None
        self._optimizer: AdamWStep | None = None
        self._step: Step | None = None
        self._candidate: Head | None = None
        self._anchors: list[AnchorMargins | Problem] = []
        self._overflowed = False
        self._device_seconds = 0.0
        self._questions = Questions(self._passes)

    def learning(self) -> Iterator[Callable[[], bool]]:
        """Turns until there is a candidate, or surely none.

        Each tells whether it finished the first pass of a group of the step.
        """
        for turn in self._learning():
            yield lambda turn=turn: self._timed(turn)

    def judging(self) -> Iterator[Callable[[], bool]]:
        """The turns after that, and after what was asked has been heard."""
        for turn in self._judging():
            yield lambda turn=turn: self._timed(turn)

    def asking(self) -> Iterator[Callable[[], bool]]:
        """The turns between the two, which find out what the trainer has to be asked."""
        for turn in self._asking():
            yield lambda turn=turn: self._timed(turn)

    @property
    def asked(self) -> list[Asked]:
        """The questions about states that stay with the trainer, once `asking` is through."""
        return self._questions.asked

    def hear(self, answers: Sequence[Told]) -> None:
        """What the trainer said, one answer a question."""
        self._questions.hear(answers)

    @property
    def results(self) -> Sequence[GroupResult]:
        """What became of the groups that had their first pass."""
        return self._results

    def _timed(self, turn: Callable[[], bool]) -> bool:
        started = time.perf_counter()
        try:
            return turn()
        finally:
            self._device_seconds += time.perf_counter() - started

    def _learning(self) -> Iterator[Callable[[], bool]]:
        for group in self._job.groups:
            yield lambda group=group: self._measure(group)
        for place, pair in enumerate(self._job.replay):
            yield lambda pair=pair, place=place: self._measure_again(pair, place)
        yield self._differentiate
        if self._optimizer is not None:
            for name in self._optimizer.names:
                yield lambda name=name: self._move(name)
            yield self._make_candidate

    def _asking(self) -> Iterator[Callable[[], bool]]:
        if self._candidate is None:
            return
        if self._job.method.gate.checks_drift:
            for used in self._used:
                if not used.replayed and kept_by_trainer(used.items):
                    yield lambda used=used: self._query_group(used)
        for pair in self._job.anchors:
            if kept_by_trainer((pair.chosen, pair.rejected)):
                yield lambda pair=pair: self._query_pair(pair)

    @torch.no_grad()
    def _query_group(self, group: Group) -> bool:
        assert self._candidate is not None
        self._questions.about_group(self._candidate, group)
        return False

    @torch.no_grad()
    def _query_pair(self, pair: AnchorItems) -> bool:
        assert self._candidate is not None
        self._questions.about_pair(self._candidate, pair)
        return False

    def _judging(self) -> Iterator[Callable[[], bool]]:
        if self._candidate is None:
            return
        if self._job.method.gate.checks_drift:
            for used in self._used:
                if not used.replayed:
                    yield lambda used=used: self._measure_candidate(used)
        for pair in self._job.anchors:
            yield lambda pair=pair: self._judge(pair)

    @torch.no_grad()
    def _measure(self, group: AlignGroup) -> bool:
        skipped, errors = None, Errors()
        if len(group.items) < 2:
            skipped = "too_few"
        elif group.preferred is None and self._job.method.labels == "outside_only":
            skipped = "unlabelled"
        else:
            made = self._passes.measure(group, errors, len(self._results), replayed=False)
            if made is None:
                skipped = "error"
            elif not self._passes.rewards(made).has_label:
                skipped = "equal"
            else:
                self._used.append(made)
        self._results.append(GroupResult(skipped, errors))
        return True

    @torch.no_grad()
    def _measure_again(self, pair: AlignGroup, place: int) -> bool:
        made = self._passes.measure(pair, Errors(), place, replayed=True)
        if made is not None:  # what cannot be scored any more is not learnt from
            self._used.append(made)
        return False

    @torch.no_grad()
    def _differentiate(self) -> bool:
        if not self._used:
            return False
        method = self._job.method
        self._loss = loss_by_reward([self._passes.rewards(group) for group in self._used], method)
        self._optimizer = adamw_step(
            self._parent,
            self._moments,
            self._loss,
            method,
            omega=self._omega,
            rte_KRs=[group.rte_KR for group in self._used],
            c_KPs=[group.c_KP for group in self._used],
            j_KPs=[group.j_KP for group in self._used],
        )
        return False

    @torch.no_grad()
    def _move(self, name: str) -> bool:
        assert self._optimizer is not None
        self._optimizer.update(name)
        return False

    @torch.no_grad()
    def _make_candidate(self) -> bool:
        assert self._optimizer is not None
        job = self._job
        self._step = self._optimizer.finish()
        metadata = {**self._parent.metadata, "omega": job.candidate_omega, "t": job.t + 1}
        self._candidate = Head(self._step.tensors, metadata)
        for group in self._used:
            if job.method.gate.checks_drift and not group.replayed:
                continue  # the third pass looks at it
            # Nobody reads the states again: whether its rewards are numbers shows on the parent's.
            rewards = self._candidate.parts(group.rte_KR, group.c_KP).rewards(job.candidate_omega)
            self._overflowed |= not bool(torch.isfinite(rewards).all())
        return False

    @torch.no_grad()
    def _measure_candidate(self, group: Group) -> bool:
        assert self._candidate is not None
        told = self._questions.told("gate", "candidate")
        self._overflowed |= not self._passes.measure_candidate(self._candidate, group, told)
        return False

    @torch.no_grad()
    def _judge(self, pair: AnchorItems) -> bool:
        assert self._candidate is not None
        told = self._questions.told_of_anchors()
        self._anchors.append(self._passes.judge(self._candidate, pair, told))
        return False

    @property
    def used(self) -> Sequence[Group]:
        """The groups learnt from, those of the replay last."""
        return self._used

    def result(self, controls: Controls | None = None) -> Update:
        """What the turns came to.

        Args:
            controls: that learnt beside it.
        """
        own = [group for group in self._used if not group.replayed]
        labelled = sum(group.preferred is not None for group in own)
        loss, step = self._loss, self._step
        sigmas = [float(sigma(self._passes.rewards(group).r_K.double())) for group in self._used]
        measured = [self._passes.measured(group) for group in own]
        finite = (
            not self._overflowed
            and step is not None
            and step.finite
            and loss is not None
            and math.isfinite(loss.total)
            and all(math.isfinite(r) for one in measured for r in (*one.candidate, *one.reference))
        )
        optimizer = None
        if step is not None:
            moments = step.moments
            optimizer = controls.beside(moments) if controls else moments.to_bytes()
        return Update(
            groups=self._results,
            labelled=labelled,
            pseudo=len(own) - labelled,
            replayed=len(self._used) - len(own),
            gre_groups=loss.gre_groups if loss else 0,
            bt=loss.bt if loss else None,
            gre=loss.gre if loss else None,
            kl=loss.kl if loss else None,
            total=loss.total if loss else None,
            sigma=sum(sigmas) / len(sigmas) if sigmas else None,
            gradient_norm=step.gradient_norm if step else None,
            finite=finite,
            weights=self._candidate.to_bytes() if self._candidate else None,
            optimizer=optimizer,
            measured=measured,
            again=[self._passes.measured(group) for group in self._used if group.replayed],
            anchors=self._anchors,
            controls=controls.updates if controls else [],
            device_seconds=self._device_seconds + (controls.device_seconds if controls else 0.0),
        )
