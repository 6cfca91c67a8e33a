"""What the engine is given for an align, what it asks meanwhile, and what it comes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from r2m.errors import Problem
from r2m_service.application.scoring_items import HeadSource, Item, Trace, Vector
from r2m_service.domain.method import ControlKind, MethodSettings

Because = Literal["gate", "anchors"]
"""Why align asks: of the candidate on the step's samples, or on anchors."""

Role = Literal["candidate", "reference", "live"]
Told = Mapping[str, float]
"""v·c by the id of the states; what the trainer did not tell is not there."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about hidden states that stay with the trainer: v·c of each.

    Attributes:
        head: whose u and v these are.
        queries: u by the id of the states.
    """

    because: Because
    head: Role
    v: Vector
    queries: Mapping[str, Vector]


Ask = Callable[[Sequence[Asked]], Awaitable[Sequence[Told]]]


@dataclass(frozen=True, slots=True)
class AlignGroup:
    """The K items of one query; `preferred` holds the places of (winner, loser), if labelled."""

    items: Sequence[Item]
    preferred: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class AnchorItems:
    """A held-out pair; the first should have the higher reward."""

    chosen: Item
    rejected: Item


@dataclass(frozen=True, slots=True)
class AlignJob:
    """One update, from the parent's weights.

    Attributes:
        origin: version 0.
        optimizer: the parent's optimizer state, None at t = 0.
        t: accepted updates behind the parent.
        candidate_omega: what the candidate will score with: drift is measured at it.
        groups: of this step.
        replay: pairs with outside labels, learnt from again; nothing else is measured on them.
        anchors: pairs that judge and never train.
    """

    parent: HeadSource
    reference: HeadSource
    origin: HeadSource
    optimizer: bytes | None
    t: int
    method: MethodSettings
    candidate_omega: float
    groups: Sequence[AlignGroup]
    replay: Sequence[AlignGroup] = ()
    anchors: Sequence[AnchorItems] = ()


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What became of one group: the label used, or why it was skipped.

    Attributes:
        skipped: None, or `equal` (all rewards equal), `too_few` (fewer than two samples),
            `error` (a sample could not be used), `unlabelled` (the run learns from outside
            labels alone and this group has none).
        errors: by place in the group.
    """

    skipped: str | None
    errors: Mapping[int, Problem]


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """A used group's rewards, by sample.

    Attributes:
        rewards: by the parent at its ω, before the update; what `preferred` is held against.
        vanilla: by the frozen reward model.
        tokens: of the text.
        candidate, reference, origin: at the candidate's ω; empty where the gate measures no drift.
        other: by the parent at its ω, each with another group's hidden states; empty where that
            was not measured.
        place: among the job's groups, or among its replay.
        traces, reference_parts: for the journal: what the parent's rewards were made of, and the
            reference's v·c and w·H_last; empty where nothing is traced.
    """

    preferred: tuple[int, int] | None
    rewards: Sequence[float]
    vanilla: Sequence[float]
    tokens: Sequence[int]
    candidate: Sequence[float] = ()
    reference: Sequence[float] = ()
    origin: Sequence[float] = ()
    other: Sequence[float] = ()
    place: int = 0
    traces: Sequence[Trace] = ()
    reference_parts: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class AnchorMargins:
    """Reward of the chosen less that of the rejected, by each head at the ω it scores with."""

    candidate: float
    reference: float
    live: float


@dataclass(frozen=True, slots=True)
class ControlUpdate:
    """What a control made of an align.

    Attributes:
        margins: (the parent's, the control's) reward of the winner less that of the loser, before
            either learnt, of each group with a fresh outside label.
        moved: whether it learnt; without that it stays as it was.
        unavailable: why it cannot take part, or nothing.
    """

    control: ControlKind
    margins: Sequence[tuple[float, float]] = ()
    moved: bool = False
    unavailable: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """What an align computed. Losses are means over the used groups, before the update.

    Attributes:
        replayed: pairs of the replay that were learnt from.
        weights, optimizer: the candidate's files; None where no group could be used. The second
            holds the controls too.
        controls: in the order of the settings.
        finite: whether loss, gradient and candidate are.
        measured: the used groups of this step; `again`: those of the replay.
        anchors: by place; a problem where a pair could not be judged. Empty where there is no
            candidate.
        sigma: mean over groups of the rewards' standard deviation (1/K).
        device_seconds: what the device spent on it.
    """

    groups: Sequence[GroupResult]
    labelled: int
    pseudo: int
    replayed: int
    gre_groups: int
    bt: float | None
    gre: float | None
    kl: float | None
    total: float | None
    sigma: float | None
    gradient_norm: float | None
    finite: bool
    weights: bytes | None
    optimizer: bytes | None
    measured: Sequence[MeasuredGroup] = ()
    again: Sequence[MeasuredGroup] = ()
    anchors: Sequence[AnchorMargins | Problem] = ()
    controls: Sequence[ControlUpdate] = ()
    device_seconds: float = 0.0
