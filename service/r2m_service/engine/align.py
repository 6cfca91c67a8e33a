"""One update as a chain of device turns, each at most one group's work.

1. every group: RTEs, c and j under the parent's weights, c under the reference's;
2. once: labels, loss, gradient; then the optimizer, tensor by tensor;
3. every group, where the gate asks for drift: c under the candidate's weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.application.ports import AlignGroup, AlignJob, GroupResult, Item, Update
from r2m_service.engine.embedding import Embedder
from r2m_service.engine.pooling import pool_item
from r2m_service.modeling.attention import Pooled
from r2m_service.modeling.backbone import Encoded
from r2m_service.modeling.head import Head, Parts
from r2m_service.modeling.loss import GroupRewards, Loss, loss_of_groups, sigma
from r2m_service.modeling.update import AdamWStep, Moments, Step, gradients


@dataclass(slots=True)
class _Group:
    """What is kept of a group between turns.

    Of its states nothing that is new: they stay where the request holds them, for the third pass.
    """

    items: Sequence[Item]
    preferred: tuple[int, int] | None
    rte_KR: Tensor
    c_KP: Tensor | None
    j_KP: Tensor | None
    parts: Parts
    reference: Parts
    candidate: Parts | None = None


class Aligner:
    """Computes one align. Call the turns in order, each on the device thread.

    Args:
        parent: the weights to update.
        reference: the weights that the KL pull and drift are measured against.
        moments: the optimizer's state that goes with the parent.
        one_by_one: deterministic mode: no product over more than one sample's query.
    """

    def __init__(
        self,
        job: AlignJob,
        *,
        parent: Head,
        reference: Head,
        moments: Moments,
        embedder: Embedder,
        device: torch.device,
        one_by_one: bool,
    ) -> None:
        self._job = job
        self._parent = parent
        self._reference = reference
        self._moments = moments
        self._embedder = embedder
        self._device = device
        self._one_by_one = one_by_one
        self._omega = job.parent.key.omega
        self._results: list[GroupResult] = []
        self._used: list[_Group] = []
        self._loss: Loss | None = None
        self._optimizer: AdamWStep | None = None
        self._step: Step | None = None
        self._candidate: Head | None = None
        self._overflowed = False
        self._device_seconds = 0.0

    def turns(self) -> Iterator[Callable[[], bool]]:
        """The turns; each tells whether it finished a group's first pass."""
        for turn in self._turns():
            yield lambda turn=turn: self._timed(turn)

    def _timed(self, turn: Callable[[], bool]) -> bool:
        started = time.perf_counter()
        try:
            return turn()
        finally:
            self._device_seconds += time.perf_counter() - started

    def _turns(self) -> Iterator[Callable[[], bool]]:
        for group in self._job.groups:
            yield lambda group=group: self._measure(group)
        yield self._differentiate
        if self._optimizer is not None:
            for name in self._optimizer.names:
                yield lambda name=name: self._move(name)
            yield self._make_candidate
        if self._candidate is not None and self._job.method.gate.checks_drift:
            for used in self._used:
                yield lambda used=used: self._measure_candidate(used)

    @torch.no_grad()
    def _measure(self, group: AlignGroup) -> bool:
        skipped, errors = None, dict[int, Problem]()
        if len(group.items) < 2:
            skipped = "too_few"
        else:
            made = self._group(group, errors)
            if made is None:
                skipped = "error"
            elif not self._rewards(made).has_label:
                skipped = "equal"
            else:
                self._used.append(made)
        self._results.append(GroupResult(skipped, errors))
        return True

    def _group(self, group: AlignGroup, errors: dict[int, Problem]) -> _Group | None:
        encoded = self._encoded(group.items)
        rte_KR = torch.stack([one.rte_R for one in encoded])
        c_KP = j_KP = None
        if self._parent.attends:
            assert self._parent.v_P is not None
            z_P = (1.0 - self._omega) * self._parent.v_P
            pooled = self._pool(self._parent, group.items, encoded, rte_KR, z_P, errors)
            if errors:
                return None
            c_KP = torch.stack([one.c_P for one in pooled])
            j_KP = torch.stack([one.j_P for one in pooled if one.j_P is not None])
        parts = self._parent.parts(rte_KR, c_KP)
        reference: Parts | None = parts
        if self._reference is not self._parent:
            reference = self._parts(self._reference, group.items, encoded, rte_KR, errors)
        for place, reward in enumerate(parts.rewards(self._omega).tolist()):
            if not math.isfinite(reward):
                errors[place] = Problem(
                    Code.REWARD_NOT_FINITE, f"the reward of this sample is {reward}"
                )
        if errors or reference is None:
            return None
        return _Group(group.items, group.preferred, rte_KR, c_KP, j_KP, parts, reference)

    def _parts(
        self,
        head: Head,
        items: Sequence[Item],
        encoded: Sequence[Encoded],
        rte_KR: Tensor,
        errors: dict[int, Problem],
    ) -> Parts | None:
        """Rewards of a group by weights that are only asked, not trained."""
        if head.blind:
            return head.parts(rte_KR, None)
        pooled = self._pool(head, items, encoded, rte_KR, None, errors)
        return None if errors else head.parts(rte_KR, torch.stack([one.c_P for one in pooled]))

    def _pool(
        self,
        head: Head,
        items: Sequence[Item],
        encoded: Sequence[Encoded],
        rte_KR: Tensor,
        z_P: Tensor | None,
        errors: dict[int, Problem],
    ) -> list[Pooled]:
        queries_KP = self._queries(head, rte_KR)
        found: list[Pooled] = []
        for place, item in enumerate(items):
            try:
                found.append(pool_item(item, encoded[place], queries_KP[place], z_P))
            except Problem as problem:
                errors[place] = problem
        return found

    def _encoded(self, items: Sequence[Item]) -> list[Encoded]:
        states = self._parent.attends and any(item.feedback is None for item in items)
        return self._embedder.embed(
            [item.token_ids for item in items], states=[states] * len(items)
        )

    def _queries(self, head: Head, rte_KR: Tensor) -> Tensor:
        if self._one_by_one:
            return torch.cat([head.queries(rte_R[None]) for rte_R in rte_KR])
        return head.queries(rte_KR)

    def _rewards(self, group: _Group) -> GroupRewards:
        """The group as the loss takes it: parent and reference at the ω in training."""
        return GroupRewards(
            r_K=group.parts.rewards(self._omega),
            reference_K=group.reference.rewards(self._omega),
            preferred=group.preferred,
        )

    @torch.no_grad()
    def _differentiate(self) -> bool:
        if not self._used:
            return False
        method = self._job.method
        with torch.enable_grad():
            self._loss = loss_of_groups(
                [self._rewards(group) for group in self._used],
                alpha=method.alpha,
                kl_weight=method.kl_weight,
            )
        gradient = gradients(
            self._parent,
            omega=self._omega,
            g_N=self._loss.gradient_N.to(self._device),
            rte_NR=torch.cat([group.rte_KR for group in self._used]),
            c_NP=_cat([group.c_KP for group in self._used]),
            j_NP=_cat([group.j_KP for group in self._used]),
        )
        self._optimizer = AdamWStep(
            self._parent,
            gradient,
            self._moments,
            learning_rate=method.learning_rate,
            weight_decay=method.weight_decay,
            max_grad_norm=method.max_grad_norm,
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
        if not job.method.gate.checks_drift:
            # Nobody reads the states again: whether its rewards are numbers shows on the parent's.
            for group in self._used:
                rewards = self._candidate.parts(group.rte_KR, group.c_KP).rewards(
                    job.candidate_omega
                )
                self._overflowed |= not bool(torch.isfinite(rewards).all())
        return False

    @torch.no_grad()
    def _measure_candidate(self, group: _Group) -> bool:
        assert self._candidate is not None
        encoded = self._encoded(group.items)
        errors = dict[int, Problem]()
        group.candidate = self._parts(self._candidate, group.items, encoded, group.rte_KR, errors)
        self._overflowed |= bool(errors)
        return False

    def result(self) -> Update:
        """What the turns came to."""
        labelled = sum(group.preferred is not None for group in self._used)
        loss, step = self._loss, self._step
        sigmas = [float(sigma(self._rewards(group).r_K.double())) for group in self._used]
        omega = self._job.candidate_omega
        measured = [
            (group.candidate.rewards(omega).tolist(), group.reference.rewards(omega).tolist())
            for group in self._used
            if group.candidate is not None
        ]
        finite = (
            not self._overflowed
            and step is not None
            and step.finite
            and loss is not None
            and math.isfinite(loss.total)
            and all(math.isfinite(r) for pair in measured for rewards in pair for r in rewards)
        )
        return Update(
            groups=self._results,
            labelled=labelled,
            pseudo=len(self._used) - labelled,
            gre_groups=loss.gre_groups if loss else 0,
            bt=loss.bt if loss else None,
            gre=loss.gre if loss else None,
            kl=loss.kl if loss else None,
            total=loss.total if loss else None,
            sigma=sum(sigmas) / len(sigmas) if sigmas else None,
            gradient_norm=step.gradient_norm if step else None,
            finite=finite,
            weights=self._candidate.to_bytes() if self._candidate else None,
            optimizer=step.moments.to_bytes() if step else None,
            candidate_rewards=[candidate for candidate, _ in measured],
            reference_rewards=[reference for _, reference in measured],
            device_seconds=self._device_seconds,
        )


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
