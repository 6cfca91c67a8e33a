"""What the application needs of the device: the engine, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from r2m.errors import Problem
from r2m.tensors import TensorValue
from r2m_service.domain.method import ControlKind, MethodSettings
from r2m_service.domain.runs import FeedbackSource, Truncation


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What the engine holds."""

    model: str
    fingerprint: str
    hidden_size: int
    max_length: int
    dtype: str
    device: str
    deterministic: bool
    chat_template: bool


TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and a response, formatted by the backbone's chat template or just joined."""

    prompt: str
    response: str
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as the chat template takes them, and the tools it may name."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None


AnyText = Text | Conversation | TokenIds
"""What a sample may be; token ids are the reward model's own, taken as they are."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and how many more there were before they were cut."""

    token_ids: TokenIds
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class HeadKey:
    """Names a version across runs, for caches: the hash of its weights and its ω."""

    sha256: str
    omega: float


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A version that the engine can load when it does not hold it.

    Attributes:
        run: whose it is; runs share the device alike.
        read: gives the safetensors bytes; called in a worker thread.
        keeps_states: whether a control of the run will ask for the backbone's token states.
    """

    run: str
    key: HeadKey
    feedback: FeedbackSource
    read: Callable[[], bytes]
    keeps_states: bool = False


Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What a trainer computed from hidden states that stay with it (method.md, section 7).

    Attributes:
        id: what it knows the states by.
        states: how many there are.
        head: the version whose u and v it computed with; None: it has not yet.
        fused: v·c.
        pooled: c and j of shape (2, D_p); j is taken along v, so that ∂r/∂u = (1 − ω) j.
        reference: v·c under the reference head, where align asked for it.
    """

    id: str
    states: int
    head: int | None = None
    fused: float | None = None
    pooled: npt.NDArray[np.float32] | None = None
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One sample, checked and tokenized.

    Attributes:
        feedback: the policy's states; None where the run takes none or they stay with the trainer.
        split: what came in their place.
    """

    token_ids: TokenIds
    feedback: TensorValue | None
    truncated: int = 0
    split: Split | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a reward was made of, for the journal; each of width D_rm or D_p, float32.

    Attributes:
        rte: H_last; u: the absorbed query; c, j: the pooled states (method.md, section 7). Those
            of the attention are None for a head without one, j also at score.
        fused: v·c as the trainer told it, at score, in place of c.
    """

    rte: Vector
    u: Vector | None = None
    c: Vector | None = None
    j: Vector | None = None
    fused: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Rewards of one sample: the head's, and the frozen RM's own."""

    reward: float
    vanilla_reward: float
    device_seconds: float = field(default=0.0, compare=False)
    trace: Trace | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Queried:
    """What the trainer needs before a sample has a reward: u, its absorbed query."""

    u: Vector


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
    """The K items of one query; `preferred` holds the places of (winner, loser), if labelled.

    Attributes:
        fresh: whether no head behind the parent has learnt from its label.
    """

    items: Sequence[Item]
    preferred: tuple[int, int] | None
    fresh: bool = True


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


class Engine(Protocol):
    """The device: backbone, attention, head arithmetic."""

    @property
    def info(self) -> BackboneInfo:
        """What it holds."""
        ...

    async def encode(
        self, texts: Sequence[AnyText], *, truncation: Truncation
    ) -> list[Encoded | Problem]:
        """Token ids, or why a text has none (text_empty, text_invalid, text_too_long, …)."""
        ...

    async def score(
        self, head: HeadSource | None, items: Sequence[Item]
    ) -> list[Scored | Queried | Problem]:
        """Rewards by one version, or vanilla ones for None. One answer an item, in order.

        An item whose states stay with the trainer, and of which it has told nothing, is `Queried`.
        """
        ...

    async def direction(self, head: HeadSource) -> Vector:
        """v = W_v W_o w of a version that attends: what its rewards read c in."""
        ...

    async def align(
        self, job: AlignJob, progress: Callable[[GroupResult], None], ask: Ask
    ) -> Update:
        """One update; yields the device between groups.

        Args:
            progress: hears of each group that is done.
            ask: what the candidate makes of hidden states that stay with the trainer.
        """
        ...

    def first_head(
        self, *, policy_width: int, feedback: FeedbackSource, method: MethodSettings
    ) -> bytes:
        """Version 0 as safetensors: W_o = 0, φ = the frozen RM's own head, ω(1)."""
        ...
