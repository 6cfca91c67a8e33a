"""What the application tells a journal: every reward and align, with what they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from r2m.tensors import TensorValue
from r2m_service.application.scoring_items import Trace


@dataclass(frozen=True, slots=True)
class HeadName:
    """A version, so that a journal can be read beside another registry."""

    run: str
    branch: str
    head: int
    sha256: str
    omega: float


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One sample's reward. `feedback`: in full, where the journal asked for it."""

    id: str
    group: str
    reward: float
    vanilla_reward: float
    trace: Trace
    feedback: TensorValue | None = None


@dataclass(frozen=True, slots=True)
class AlignedRow:
    """One sample of a group that an align learnt from.

    Attributes:
        group: number among the used groups of the step; replayed pairs come after them.
        label: +1 the preferred sample, -1 the one it was preferred to, 0 neither (pseudo labels).
        reward: by the parent, before the update.
        reference_fused, reference_base: the reference's v·c and w·H_last.
        trace: under the parent.
    """

    group: int
    replayed: bool
    label: int
    reward: float
    reference_fused: float
    reference_base: float
    trace: Trace
    feedback: TensorValue | None = None


@dataclass(frozen=True, slots=True)
class AlignedStep:
    """One align as it was answered.

    Attributes:
        parent: with the ω it was trained at.
        candidate: None where the step made none.
        t: accepted updates behind the parent.
        candidate_omega: what drift was measured at.
        method: all settings at that time, as JSON.
        answer: as it was given, as JSON.
    """

    step: int
    parent: HeadName
    reference: int
    candidate: int | None
    live: int
    verdict: str
    t: int
    candidate_omega: float
    method: str
    answer: str
    rows: Sequence[AlignedRow]


class Journal(Protocol):
    """Appends; called in a worker thread. A failure is the journal's own affair: it logs it."""

    @property
    def full(self) -> bool:
        """Whether hidden states are wanted in full."""
        ...

    def scored(self, by: HeadName, at: datetime, rows: Sequence[ScoredRow]) -> None:
        """Rewards of one call."""
        ...

    def aligned(self, at: datetime, step: AlignedStep) -> None:
        """An align that was committed."""
        ...
