"""Messages of score, align and evaluate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from r2m_service.application.contract.base import (
    MAX_GROUP,
    MAX_SAMPLES,
    Answer,
    BranchName,
    ErrorOut,
    HeadName,
    Label,
    Message,
    Real,
    SampleId,
    Step,
    Vector,
)
from r2m_service.application.contract.controls import ControlsOut
from r2m_service.application.contract.labels import (
    MAX_ANCHORS,
    Advice,
    AnchorsJudged,
    AnchorStates,
    EvidenceOut,
)
from r2m_service.application.contract.samples import SampleIn


class ScoreRequest(Message):
    """Samples to score. The head is resolved once: all samples get one version."""

    samples: list[SampleIn] = Field(max_length=MAX_SAMPLES, fail_fast=True)
    head: HeadName = "live"
    step: Step | None = Field(
        default=None, description="instead of head: the head that scores this step of the branch"
    )
    branch: Label | None = None


class VanillaRequest(Message):
    """Samples to score by the frozen reward model alone."""

    samples: list[SampleIn] = Field(max_length=MAX_SAMPLES, fail_fast=True)


class ScoreOut(Answer):
    """A sample's rewards, or its error."""

    id: str
    reward: float | None = None
    vanilla_reward: float | None = None
    error: ErrorOut | None = None
    tokens: int | None = Field(default=None, description="of the text as the model read it")
    states: int | None = Field(default=None, description="hidden states received")
    truncated: int | None = Field(default=None, description="tokens cut off, where the run cuts")
    finish_reason: str | None = None
    audit: bool | None = Field(
        default=None, description="true: marked for an outside label, which /labels takes"
    )
    u: Vector | None = Field(
        default=None,
        description="split: the sample's absorbed query W_k q / √d, D_p float32; v·c goes back",
    )
    feedback_bytes: int | None = Field(
        default=None, description="that its feedback took in this call, both ways"
    )


class ScoreAnswer(Answer):
    """Rewards in the order of the samples. `head` and what follows from it: with a run only."""

    run: str | None = None
    head: int | None = None
    branch: str | None = None
    omega: float | None = None
    fingerprint: str
    scores: list[ScoreOut]
    advice: Advice | None = Field(
        default=None, description="what the audited gap says: ok, warn, stop"
    )
    v: Vector | None = Field(default=None, description="split: W_v W_o w of this head, D_p float32")


class GroupIn(Message):
    """The K responses of one query, with hidden states of the updated policy."""

    id: SampleId
    samples: list[SampleIn] = Field(max_length=MAX_GROUP, fail_fast=True)
    preferred: list[SampleId] | None = Field(
        default=None,
        description="[winner, loser] by sample id: an outside label",
        min_length=0,
        max_length=2,
    )


class AlignRequest(Message):
    """One update. `step` is the trainer's clock: 1, 2, 3, … on each branch."""

    step: Step
    branch: BranchName | None = None
    groups: list[GroupIn] = Field(max_length=MAX_SAMPLES, fail_fast=True)
    anchors: list[AnchorStates] = Field(
        default_factory=list[AnchorStates],
        max_length=MAX_ANCHORS,
        description="the anchor pairs' hidden states, where they are due",
    )


class LossOut(Answer):
    """Means over the used groups, before the update (eq. 5, 6, 7). Absent: not computed."""

    bt: float | None = None
    gre: float | None = None
    kl: float | None = None
    total: float | None = None


class GroupCounts(Answer):
    """What became of the groups: `used` = `pseudo` + `labelled`."""

    used: int
    skipped: int
    pseudo: int
    labelled: int
    skipped_because: dict[str, int] = Field(default_factory=dict[str, int])
    replayed: int = Field(default=0, description="pairs with outside labels learnt from again")
    withheld: int = Field(default=0, description="outside labels not used: their prompt judges")
    disagree: int = Field(default=0, description="outside labels that the reward had otherwise")


class DriftOut(Answer):
    """The candidate against the reference head, both at the candidate's ω."""

    reference: int
    spread_ratio: float | None = None
    rank_correlation: float | None = None
    samples: int


class SampleError(Answer):
    """A sample that could not be used; its group was left out."""

    id: str
    group: str
    error: ErrorOut


class SkippedGroup(Answer):
    """A group that align leaves out, told as soon as it is known."""

    id: str
    because: str = Field(description="error, equal, too_few or unlabelled")
    errors: list[SampleError] = Field(default_factory=list[SampleError])


class Progress(Answer):
    """How far an align is. `skipped`: groups left out since the last time."""

    groups_done: int
    groups_total: int = Field(description="that the device works on")
    skipped: list[SkippedGroup] = Field(default_factory=list[SkippedGroup])


class AlignAnswer(Answer):
    """The first and only answer to (run, branch, step)."""

    run: str
    step: int
    branch: str
    head: int = Field(description="live afterwards")
    candidate: int | None = None
    parent: int
    accepted: bool
    verdict: Literal["accepted", "rejected", "undecided", "skipped", "frozen"]
    reason: str
    omega: float = Field(description="of the head that is live afterwards")
    loss: LossOut
    groups: GroupCounts
    drift: DriftOut | None = None
    sigma: float | None = Field(default=None, description="mean within-group σ of the rewards")
    gradient_norm: float | None = None
    errors: list[SampleError] = Field(default_factory=list[SampleError])
    notes: list[str] = Field(default_factory=list[str])
    anchors: AnchorsJudged | None = None
    anchors_step: int | None = Field(
        default=None, description="the next step that brings the anchors' hidden states"
    )
    evidence: EvidenceOut | None = None
    controls: ControlsOut | None = None
    advice: Advice | None = None
    feedback_bytes: int | None = Field(
        default=None, description="that this step's feedback took, both ways"
    )


class QueryOut(Answer):
    """A sample's absorbed query under a head."""

    id: str = Field(description="of an anchor pair: PAIR/chosen or PAIR/rejected")
    u: Vector = Field(description="D_p float32")


class QuestionOut(Answer):
    """What an align wants to know of hidden states that stay with the trainer."""

    because: Literal["stale_context", "reference", "gate", "anchors"]
    want: Literal["fused", "pooled"] = Field(
        description="fused: v·c, one number a sample; pooled: c and j"
    )
    head: int | None = Field(default=None, description="whose u and v; absent: the candidate's")
    v: Vector = Field(description="D_p float32")
    queries: list[QueryOut]


class AlignPending(Answer):
    """Not an answer yet: the trainer is asked, and an align goes on with what it replies."""

    run: str
    step: int
    branch: str
    ticket: str
    questions: list[QuestionOut]


class ReplyValueIn(Message):
    """One sample's numbers; `pooled` is c, then j."""

    id: SampleId
    fused: Real | None = None
    pooled: Annotated[
        Any, WithJsonSchema({"type": ["string", "null"], "contentEncoding": "base64"})
    ] = Field(default=None, description="2·D_p float32, little-endian; base64 in JSON")


class ReplyIn(Message):
    """To one question. What is missing costs its sample and no other."""

    values: list[ReplyValueIn] = Field(max_length=MAX_SAMPLES, fail_fast=True)


class ReplyAlignRequest(Message):
    """One reply a question, in the order of the questions."""

    replies: list[ReplyIn] = Field(max_length=16)


class PairIn(Message):
    """A preference: the chosen sample should have the higher reward."""

    id: SampleId
    chosen: SampleIn
    rejected: SampleIn


class EvaluateRequest(Message):
    """Preference pairs to judge by one or more heads at once."""

    heads: list[HeadName] = Field(
        default_factory=list[HeadName], max_length=16, description="default: live"
    )
    pairs: list[PairIn] = Field(max_length=MAX_SAMPLES)
    margins: bool | None = Field(default=None, description="true: answer each pair's margin, too")


class AccuracyOut(Answer):
    """How often a head prefers the chosen sample.

    `better`, `worse`, `p_value`: against the first head of the call, by an exact sign test.
    """

    head: int | None = Field(default=None, description="absent: the frozen reward model")
    accuracy: float = Field(description="ties count half")
    low: float = Field(description="Wilson, 95 %")
    high: float
    correct: int
    ties: int
    better: int | None = None
    worse: int | None = None
    p_value: float | None = None
    margins: list[float] | None = Field(
        default=None,
        description="if asked for: the reward of chosen less that of rejected, by judged pair",
    )


class EvaluateAnswer(Answer):
    """Accuracies on the pairs that could be judged, the same pairs for every head."""

    run: str
    pairs: int
    heads: list[AccuracyOut]
    vanilla: AccuracyOut
    errors: list[SampleError]
