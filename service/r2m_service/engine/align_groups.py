"""A group's passes within an align: what is measured of it under each of the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.application.align_job import (
    AlignGroup,
    AnchorItems,
    AnchorMargins,
    MeasuredGroup,
    Role,
    Told,
)
from r2m_service.application.scoring_items import Item, Trace, Vector
from r2m_service.engine.measuring import NOTHING, Errors, Measuring, require_rewards, trace_of
from r2m_service.modeling.backbone import Encoded
from r2m_service.modeling.head import Head, Parts
from r2m_service.modeling.loss import GroupRewards

OTHER_GROUPS = 16
"""Groups whose rewards are also asked with other states: the feedback gain rests on them."""


@dataclass(frozen=True, slots=True)
class AlignHeads:
    """The weights an align is about.

    Attributes:
        parent: what is updated.
        reference: what the KL pull and drift are measured against.
        origin: version 0.
    """

    parent: Head
    reference: Head
    origin: Head


@dataclass(slots=True)
class Group:
    """What is kept of a group between turns.

    Of its states nothing that is new: they stay where the request holds them, for the third pass.

    Attributes:
        place: among the step's groups, or among the replay's.
        parts, reference, candidate: rewards by each head before ω mixes them.
        other: rewards with another group's states.
    """

    items: Sequence[Item]
    preferred: tuple[int, int] | None
    replayed: bool
    place: int
    rte_KR: Tensor
    c_KP: Tensor | None
    j_KP: Tensor | None
    parts: Parts
    reference: Parts
    other: Sequence[float] = field(default_factory=list[float])
    candidate: Parts | None = None


class GroupPasses:
    """The passes over groups and anchors, on the device thread.

    Args:
        omega: of the parent.
        candidate_omega: what the candidate will score with.
        vanilla: the frozen reward model's own rewards of RTEs.
        trace: tell what the rewards were made of, for the journal.
    """

    def __init__(
        self,
        heads: AlignHeads,
        measuring: Measuring,
        *,
        omega: float,
        candidate_omega: float,
        vanilla: Callable[[Tensor], Tensor],
        trace: bool,
    ) -> None:
        self.heads = heads
        self._measuring = measuring
        self._omega = omega
        self._candidate_omega = candidate_omega
        self._vanilla = vanilla
        self._trace = trace
        self._before: tuple[Sequence[Item], Sequence[Encoded]] | None = None
        self._with_others = 0

    def measure(
        self, group: AlignGroup, errors: Errors, place: int, *, replayed: bool
    ) -> Group | None:
        """The first pass; None where a sample of it cannot be used.

        Args:
            errors: hears of those samples, by their place.
        """
        items, parent = group.items, self.heads.parent
        encoded = self._measuring.encoded(items)
        rte_KR = torch.stack([one.rte_R for one in encoded])
        c_KP = j_KP = None
        if parent.attends:
            pooled = self._measuring.pool(parent, items, encoded, rte_KR, self._omega, errors)
            if errors:
                return None
            c_KP = torch.stack([one.c_P for one in pooled])
            j_KP = torch.stack([one.j_P for one in pooled if one.j_P is not None])
        parts = parent.parts(rte_KR, c_KP)
        reference: Parts | None = parts
        if self.heads.reference is not parent:
            told = {
                item.split.id: item.split.reference
                for item in items
                if item.split is not None and item.split.reference is not None
            }
            reference = self._measuring.parts(
                self.heads.reference, items, encoded, rte_KR, errors, told
            )
        require_rewards(parts.rewards(self._omega).tolist(), errors)
        if errors or reference is None:
            return None
        made = Group(items, group.preferred, replayed, place, rte_KR, c_KP, j_KP, parts, reference)
        if not replayed:
            made.other = self._with_others_states(made)
            self._before = (items, encoded)
        return made

    def _with_others_states(self, group: Group) -> Sequence[float]:
        """The rewards with the states of the group before: what h itself is worth."""
        if self.heads.parent.blind or self._before is None or self._with_others >= OTHER_GROUPS:
            return []
        items, encoded = self._before
        if any(item.split is not None for item in items):
            return []  # another sample's states are not here
        self._with_others += 1
        places = [place % len(items) for place in range(len(group.items))]
        parts = self._measuring.parts(
            self.heads.parent,
            [items[place] for place in places],
            [encoded[place] for place in places],
            group.rte_KR,
            Errors(),
        )
        return [] if parts is None else parts.rewards(self._omega).tolist()

    def rewards(self, group: Group) -> GroupRewards:
        """The group as the loss takes it: parent and reference at the ω in training."""
        return GroupRewards(
            r_K=group.parts.rewards(self._omega),
            reference_K=group.reference.rewards(self._omega),
            preferred=group.preferred,
        )

    def measure_candidate(self, candidate: Head, group: Group, told: Told) -> bool:
        """The pass under the candidate; False where its rewards are no numbers.

        A group that the trainer was asked about and did not tell of stays unmeasured.
        """
        encoded = self._measuring.encoded(group.items)
        errors = Errors()
        group.candidate = self._measuring.parts(
            candidate, group.items, encoded, group.rte_KR, errors, told
        )
        return all(one.code is Code.UNANSWERED for one in errors.values())

    def rtes(self, items: Sequence[Item]) -> Tensor:
        """H_last of each."""
        return torch.stack([one.rte_R for one in self._measuring.encoded(items)])

    def queries(self, head: Head, items: Sequence[Item], rte_KR: Tensor) -> dict[str, Vector]:
        """u under a head, by id, of those whose states stay with the trainer."""
        u_KP = self._measuring.queries(head, rte_KR).cpu().numpy()
        return {
            item.split.id: u_P
            for item, u_P in zip(items, u_KP, strict=True)
            if item.split is not None
        }

    def judge(
        self, candidate: Head, pair: AnchorItems, told: Mapping[Role, Told]
    ) -> AnchorMargins | Problem:
        """An anchor pair's margins, or why it cannot judge."""
        items = (pair.chosen, pair.rejected)
        encoded = self._measuring.encoded(items)
        rte_KR = torch.stack([one.rte_R for one in encoded])
        margins: list[float] = []
        heads: tuple[tuple[Role, Head, float], ...] = (
            ("candidate", candidate, self._candidate_omega),
            ("reference", self.heads.reference, self._candidate_omega),
            ("live", self.heads.parent, self._omega),
        )
        for role, head, omega in heads:
            errors = Errors()
            said = told.get(role, NOTHING)
            parts = self._measuring.parts(head, items, encoded, rte_KR, errors, said)
            rewards = [] if parts is None else parts.rewards(omega).tolist()
            require_rewards(rewards, errors)
            for problem in errors.values():
                return problem
            margins.append(rewards[0] - rewards[1])
        return AnchorMargins(*margins)

    def measured(self, group: Group) -> MeasuredGroup:
        """What an answer and the journal are told of it."""
        omega = self._candidate_omega
        drift = group.candidate is not None
        origin = self.heads.origin
        return MeasuredGroup(
            preferred=group.preferred,
            rewards=group.parts.rewards(self._omega).tolist(),
            vanilla=self._vanilla(group.rte_KR).tolist(),
            tokens=[len(item.token_ids) for item in group.items],
            candidate=group.candidate.rewards(omega).tolist() if group.candidate else [],
            reference=group.reference.rewards(omega).tolist() if drift else [],
            # Version 0 is blind: it needs no states.
            origin=origin.parts(group.rte_KR, None).rewards(omega).tolist()
            if drift and origin.blind
            else [],
            other=group.other,
            place=group.place,
            traces=self._traces(group) if self._trace else [],
            reference_parts=list(
                zip(group.reference.fused_N.tolist(), group.reference.base_N.tolist(), strict=True)
            )
            if self._trace
            else [],
        )

    def _traces(self, group: Group) -> list[Trace]:
        attends = group.c_KP is not None and group.j_KP is not None
        queries_KP = self._measuring.queries(self.heads.parent, group.rte_KR) if attends else None
        return [
            trace_of(
                group.rte_KR[place],
                None if queries_KP is None else queries_KP[place],
                None if group.c_KP is None else group.c_KP[place],
                None if group.j_KP is None else group.j_KP[place],
            )
            for place in range(len(group.items))
        ]
