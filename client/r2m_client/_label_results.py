"""What the server answers about anchors and outside labels, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r2m_client._errors import ServerError


@dataclass(frozen=True, slots=True)
class AnchorsInfo:
    """A run's anchor set.

    Attributes:
        set: its number, from 1.
        looks: how often it has judged.
        sha256: of its content.
        next_step: the step whose align brings the anchors' hidden states; None: none does.
    """

    run: str
    set: int
    pairs: int
    looks: int
    sha256: str
    next_step: int | None = None


@dataclass(frozen=True, slots=True)
class Paired:
    """A candidate against another head on the anchors.

    Attributes:
        better, worse: pairs that the candidate alone has right, and that the other alone has.
        difference: of accuracies; low and high: one-sided bounds at this look's level.
        accuracy: of the other head.
    """

    head: int
    better: float
    worse: float
    difference: float
    low: float
    high: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class AnchorsJudged:
    """What the anchors said of a candidate; wilson: 95 % interval of its accuracy."""

    set: int
    pairs: int
    look: int
    accuracy: float
    reference: Paired
    live: Paired
    wilson: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Live evidence: information, not alarms. None: not measurable.

    Attributes:
        spread_ratio, rank_correlation: to version 0, at equal ω.
        length_correlation: of reward and tokens, within groups.
        unusable: share of groups left out.
        vanilla_agreement: share of pseudo labels that the vanilla reward shares.
        label_agreement: share of outside labels that the reward shares.
        feedback_gain: mean |r(h) − r(another sample's h)| over the spread.
        reward_mean: over the used groups' samples, by the head before the update.
        vanilla_mean: the frozen reward model's, of the same samples.
    """

    spread_ratio: float | None = None
    rank_correlation: float | None = None
    length_correlation: float | None = None
    unusable: float | None = None
    vanilla_agreement: float | None = None
    label_agreement: float | None = None
    feedback_gain: float | None = None
    reward_mean: float | None = None
    vanilla_mean: float | None = None


@dataclass(frozen=True, slots=True)
class AuditInfo:
    """The audited gap: how far rewards run ahead of outside grades.

    Attributes:
        judged: labels that judged; waiting: marked samples without a label.
        gap: mean z(reward) − z(grade) of the last window; cusum: its one-sided sum.
    """

    judged: int
    waiting: int
    cusum: float = 0.0
    gap: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class LabelResult:
    """What became of a label.

    Attributes:
        id: the graded sample, or the better one.
        use: train or judge.
        known: this very label had come before.
        error: why it was not taken (an instance, not raised), or None.
    """

    id: str
    use: str | None = None
    known: bool = False
    error: ServerError | None = None


@dataclass(frozen=True, slots=True)
class LabelsResult:
    """What became of labels, in their order; advice: ok, warn or stop."""

    run: str
    audit: AuditInfo
    advice: str
    labels: tuple[LabelResult, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptLabel:
    """A label that a kept sample has: a grade, or a preference of two samples."""

    id: str | None = None
    grade: float | None = None
    chosen: str | None = None
    rejected: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class KeptSample:
    """A sample that is marked for an outside label.

    Attributes:
        number: its place in the run's order.
        use: whether its label trains or judges.
        text: as it was sent, without hidden states.
        at: RFC 3339, UTC.
    """

    number: int
    id: str
    group: str
    use: str
    head: int
    branch: str
    reward: float
    vanilla_reward: float
    at: str
    text: dict[str, Any] = field(default_factory=dict[str, Any])
    labels: tuple[KeptLabel, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptSamples:
    """A page of kept samples, oldest first; next: the `after` of the next page, if there is one."""

    samples: tuple[KeptSample, ...] = ()
    next: int | None = None
