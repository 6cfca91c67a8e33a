"""Messages of outside labels, the samples that wait for them, and anchor sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from r2m_service.application.contract.base import (
    MAX_SAMPLES,
    Answer,
    ErrorOut,
    Message,
    Real,
    SampleId,
)
from r2m_service.application.contract.samples import SampleIn

MAX_ANCHORS = 4096
MAX_LISTED = 1000
Advice = Literal["ok", "warn", "stop"]


class LabelIn(Message):
    """What somebody outside says of marked samples: a grade of one, or a preference of two."""

    id: SampleId | None = Field(default=None, description="of the sample that is graded")
    grade: Real | None = Field(
        default=None, allow_inf_nan=False, description="more is better; any scale, the same always"
    )
    chosen: SampleId | None = Field(default=None, description="instead: the better sample")
    rejected: SampleId | None = Field(default=None, description="and the worse one of its group")
    source: str | None = Field(default=None, max_length=100, examples=["alice", "judge-7"])


class LabelsRequest(Message):
    """Labels, late and in any order; the same label again is fine."""

    labels: list[LabelIn] = Field(max_length=MAX_SAMPLES, fail_fast=True)


class LabelOut(Answer):
    """What became of a label; in the order of the request."""

    id: str = Field(description="the graded sample, or the better one")
    use: Literal["train", "judge"] | None = None
    known: bool = Field(default=False, description="this very label had come before")
    error: ErrorOut | None = None


class AuditOut(Answer):
    """The audited gap: how far rewards run ahead of outside grades (docs/algorithm.md)."""

    judged: int = Field(description="labels that judged")
    waiting: int = Field(description="marked samples without a label")
    gap: float | None = Field(default=None, description="mean z(reward) - z(grade), last window")
    cusum: float = 0.0
    note: str = ""


class LabelsAnswer(Answer):
    """What became of the labels, and what they say."""

    run: str
    labels: list[LabelOut]
    audit: AuditOut
    advice: Advice


class KeptSampleOut(Answer):
    """A marked sample, kept until its label comes: what a labelling tool needs."""

    number: int = Field(description="place in the run's order; `after` goes on from it")
    id: str
    group: str
    use: Literal["train", "judge"]
    head: int
    branch: str
    reward: float
    vanilla_reward: float
    text: dict[str, Any] = Field(description="the sample as it was sent, without hidden states")
    at: str
    labels: list[LabelIn] = Field(default_factory=list[LabelIn])


class KeptSampleList(Answer):
    """Marked samples, oldest first; `next`: the `after` of the next page."""

    samples: list[KeptSampleOut]
    next: int | None = None


class AnchorPairIn(Message):
    """A held-out pair whose better side is known, without hidden states: they come with align."""

    id: SampleId
    chosen: SampleIn
    rejected: SampleIn
    gold: list[Real] | None = Field(
        default=None, description="[of chosen, of rejected]; the first is greater"
    )


class AnchorsRequest(Message):
    """The whole set; it replaces the one before."""

    pairs: list[AnchorPairIn] = Field(
        max_length=MAX_ANCHORS, min_length=1, description="500 and more can tell two points apart"
    )
    reason: str | None = Field(default=None, max_length=1000)


class AnchorsOut(Answer):
    """A run's anchor set and what it is due."""

    run: str
    set: int
    pairs: int
    looks: int = Field(description="how often it has judged")
    sha256: str
    next_step: int | None = Field(
        default=None, description="of the current branch: align then brings their hidden states"
    )


class AnchorStates(Message):
    """Hidden states of an anchor pair, by the current policy."""

    id: SampleId
    chosen: Annotated[SampleIn, Field(description="an id and feedback, no text")]
    rejected: Annotated[SampleIn, Field(description="an id and feedback, no text")]


class PairedOut(Answer):
    """The candidate against another head on the anchors."""

    head: int
    better: float = Field(description="pairs that the candidate alone has right; ties half")
    worse: float
    difference: float = Field(description="of accuracies")
    low: float = Field(description="one-sided bounds at this look's level")
    high: float
    accuracy: float = Field(description="of the other head")


class AnchorsJudged(Answer):
    """What the anchors said of the candidate."""

    set: int
    pairs: int = Field(description="that could be judged")
    look: int
    accuracy: float
    wilson: list[float] = Field(description="95 % interval of the accuracy")
    reference: PairedOut
    live: PairedOut


class EvidenceOut(Answer):
    """Live evidence: information, not alarms (docs/algorithm.md). Absent: not measurable."""

    spread_ratio: float | None = Field(default=None, description="to version 0, at equal ω")
    rank_correlation: float | None = Field(default=None, description="with version 0")
    length_correlation: float | None = Field(
        default=None, description="of reward and tokens, within groups"
    )
    unusable: float | None = Field(default=None, description="share of groups left out")
    vanilla_agreement: float | None = Field(
        default=None, description="share of pseudo labels that the vanilla reward shares"
    )
    label_agreement: float | None = Field(
        default=None, description="share of outside labels that the reward shares"
    )
    feedback_gain: float | None = Field(
        default=None, description="mean |r(h) - r(another sample's h)| over the spread"
    )
    reward_mean: float | None = Field(
        default=None, description="over the used groups' samples, by the head before the update"
    )
    vanilla_mean: float | None = Field(
        default=None, description="the frozen reward model's, of the same samples"
    )
