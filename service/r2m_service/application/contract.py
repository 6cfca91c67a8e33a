"""The interface's messages, version 1: what both transports take and give.

A message is the JSON body of the REST route and, field for field, the protobuf message of the
same name. Both transports validate through these models, so both refuse the same things in the
same words. What is wrong with one sample only (its text, its tensor) is not decided here: those
fields are loose, and the use case answers with an error for that sample.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

MAX_SAMPLES = 65536

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["tldr-7"])]
SampleId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Truncation = Literal["none", "left", "right", ""]
Number = Annotated[int, Field(ge=0, lt=2**31)]
HeadName = Annotated[str | int, Field(union_mode="left_to_right", examples=["live", 12])]


class Message(BaseModel):
    """Unknown keys are errors: a misspelt key must not be a silent default."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)


class Answer(BaseModel):
    """Answers leave out what is absent, on both transports."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


# ------------------------------------------------------------------ samples


class FeedbackIn(Message):
    """Policy hidden states: S tokens of width D_p, row-major, little-endian."""

    dtype: str = Field(examples=["bfloat16"])
    shape: list[int] = Field(description="[S, D_p]", examples=[[2, 4]])
    data: Annotated[
        Any, WithJsonSchema({"type": ["string", "null"], "contentEncoding": "base64"})
    ] = Field(default=None, description="base64 in JSON; absent in a safetensors body")
    hidden_state: Literal["post_norm", "pre_norm"] | None = None
    last_token: bool | None = None
    tokens: int | None = Field(
        default=None, description="tokens of prompt + response; compared with the shape"
    )


class MessageIn(Message):
    """One turn of a conversation, as the chat template takes it."""

    role: str = Field(examples=["user"])
    content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: str | None = Field(default=None, description="JSON text, as the model wrote it")


class SampleIn(Message):
    """One response. Exactly one of: prompt + response; messages; token_ids."""

    id: SampleId
    prompt: str | None = None
    response: str | None = None
    format: Literal["chat", "raw", ""] = Field(
        default="chat",
        description="of prompt + response. chat: the backbone's chat template, one user and one "
        "assistant turn; raw: joined as they are",
    )
    messages: list[MessageIn] = Field(
        default_factory=list[MessageIn], description="a whole conversation; the last turn is judged"
    )
    tools: str | None = Field(
        default=None, description="function schemas for the chat template, as JSON text"
    )
    token_ids: list[int] = Field(
        default_factory=list[int],
        description="of the reward model's tokenizer, taken as they are",
    )
    feedback: FeedbackIn | None = None
    group: str = ""
    finish_reason: str | None = Field(default=None, max_length=100)


# ------------------------------------------------------------------ score


class ScoreRequest(Message):
    """Samples to score. The head is resolved once: all samples get one version."""

    samples: list[SampleIn] = Field(max_length=MAX_SAMPLES)
    head: HeadName = "live"
    step: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        default=None, description="instead of head: the head that scores this step of the branch"
    )
    branch: str | None = None


class VanillaRequest(Message):
    """Samples to score by the frozen reward model alone."""

    samples: list[SampleIn] = Field(max_length=MAX_SAMPLES)


class ErrorOut(Answer):
    """An error of the table (docs/errors.md)."""

    code: str
    message: str
    retryable: bool
    field: str | None = None


class ErrorBody(Answer):
    """The body of every answer that is not a success."""

    error: ErrorOut


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


class ScoreAnswer(Answer):
    """Rewards in the order of the samples. `head` and what follows from it: with a run only."""

    run: str | None = None
    head: int | None = None
    branch: str | None = None
    omega: float | None = None
    fingerprint: str
    scores: list[ScoreOut]


# ------------------------------------------------------------------ align


class GroupIn(Message):
    """The K responses of one query, with hidden states of the updated policy."""

    id: SampleId
    samples: list[SampleIn]
    preferred: list[SampleId] | None = Field(
        default=None,
        description="[winner, loser] by sample id: an outside label",
        min_length=0,
        max_length=2,
    )


class AlignRequest(Message):
    """One update. `step` is the trainer's clock: 1, 2, 3, … on each branch."""

    step: Annotated[int, Field(ge=1, lt=2**31)]
    branch: str | None = None
    groups: list[GroupIn] = Field(max_length=MAX_SAMPLES)


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


# ------------------------------------------------------------------ runs, heads, aliases


class PolicyIn(Message):
    """The policy whose hidden states travel."""

    hidden_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        default=None, description="D_p; needed for feedback `policy`"
    )
    hidden_state: Literal["post_norm", "pre_norm", ""] = "post_norm"
    last_token: bool | None = True


class CreateRunRequest(Message):
    """A new run. `method` takes the keys of docs/algorithm.md; unknown ones are errors."""

    run: Name
    policy: PolicyIn | None = None
    feedback: Literal["policy", "backbone", "none", ""] = "policy"
    method: dict[str, Any] = Field(
        default_factory=dict[str, Any], examples=[{"profile": "guarded", "width": 256}]
    )
    truncation: Truncation = Field(
        default="none", description="none: too long is an error; left, right: that side is cut"
    )


class UpdateRunRequest(Message):
    """Settings that may change in a run's life; what is not given stays."""

    method: dict[str, Any] = Field(
        default_factory=dict[str, Any], examples=[{"learning_rate": 1e-5}]
    )
    reason: str | None = Field(default=None, max_length=1000)


class ChangeOut(Answer):
    """One entry of a run's audit trail."""

    at: str
    what: Literal["created", "updated", "archived", "alias", "rollback"]
    detail: dict[str, Any]
    reason: str | None = None


class ChangeList(Answer):
    """A run's audit trail, oldest first."""

    changes: list[ChangeOut]


class UsageOut(Answer):
    """What a run has used of this server since the process started."""

    samples: int = 0
    failed: int = 0
    tokens: int = 0
    feedback_bytes: int = 0
    device_seconds: float = 0.0
    aligns: int = 0
    since: str


class PolicyOut(Answer):
    """The policy as stored."""

    hidden_size: int
    hidden_state: str
    last_token: bool


class BranchOut(Answer):
    """A line of steps; `step` is the last one answered."""

    branch: str
    head: int
    step: int
    origin_branch: str | None = None
    origin_head: int | None = None
    origin_step: int | None = None
    reason: str | None = None


class RunOut(Answer):
    """A run as it stands."""

    run: str
    fingerprint: str
    policy: PolicyOut
    feedback: str
    method: dict[str, Any]
    branch: str
    step: int
    next_step: int
    head: int
    aliases: dict[str, int]
    archived: bool
    created_at: str
    branches: list[BranchOut]
    truncation: str
    usage: UsageOut | None = None
    live: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="the live head's numbers"
    )


class RunList(Answer):
    """All runs, oldest first."""

    runs: list[RunOut]


class HeadOut(Answer):
    """A version and the verdict on it."""

    run: str
    head: int
    parent: int | None = None
    branch: str
    step: int
    t: int
    omega: float
    reference: int
    accepted: bool
    verdict: str
    reason: str
    metrics: dict[str, Any]
    created_at: str
    sha256: str
    bytes: int
    aliases: list[str]


class HeadList(Answer):
    """All versions of a run, by number."""

    heads: list[HeadOut]


class AliasRequest(Message):
    """Where an alias shall point; `expect`: where it must point now, or nothing is moved."""

    head: Number
    expect: Number | None = None


class AliasOut(Answer):
    """An alias after the move."""

    run: str
    alias: str
    head: int
    previous: int | None = None


class RollbackRequest(Message):
    """Back to a head, or to where a step of a branch left off: exactly one of the two."""

    to: Number | None = None
    to_step: Number | None = None
    branch: str | None = None
    reason: str | None = Field(default=None, max_length=1000)


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


class EvaluateAnswer(Answer):
    """Accuracies on the pairs that could be judged, the same pairs for every head."""

    run: str
    pairs: int
    heads: list[AccuracyOut]
    vanilla: AccuracyOut
    errors: list[SampleError]


class ServerOut(Answer):
    """What this server holds."""

    version: str
    model: str
    fingerprint: str
    hidden_size: int
    max_length: int
    dtype: str
    device: str
    deterministic: bool
    chat_template: bool
