"""Messages about runs, heads, aliases, and the server itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from r2m_service.application.contract.base import (
    Answer,
    BranchName,
    EmptyResponse,
    Message,
    Name,
    Number,
    Truncation,
    Whole,
)
from r2m_service.application.contract.labels import Advice, AnchorsOut, AuditOut


class PolicyIn(Message):
    """The policy whose hidden states travel."""

    hidden_size: Annotated[Whole, Field(ge=1, le=1 << 20)] | None = Field(
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
    empty_response: EmptyResponse = Field(
        default="",
        description="score: an empty response to a prompt has a reward; error: it is `text_empty`; "
        "default: the server's (--empty-response)",
    )


class UpdateRunRequest(Message):
    """Settings that may change in a run's life; what is not given stays."""

    method: dict[str, Any] = Field(
        default_factory=dict[str, Any], examples=[{"learning_rate": 1e-5}]
    )
    reason: str | None = Field(default=None, max_length=1000)
    frozen: bool | None = Field(
        default=None, description="true: aligns change nothing; false: they do again"
    )


class ChangeOut(Answer):
    """One entry of a run's audit trail."""

    at: str
    what: str = Field(
        description="created, updated, archived, alias, rollback, anchors, frozen, unfrozen, "
        "repaired"
    )
    detail: dict[str, Any]
    reason: str | None = None
    caller: str | None = Field(
        default=None, description="name of the key; absent without keys, and of the server itself"
    )


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


class DiskOut(Answer):
    """What a run's kept heads take, by the registry: versions, and bytes of their files."""

    heads: int = 0
    weights_bytes: int = 0
    optimizer_bytes: int = 0


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
    truncation: str = "none"
    empty_response: str = "score"
    template_date: str | None = Field(
        default=None, description="that the chat template writes; absent: it writes none"
    )
    usage: UsageOut | None = None
    live: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="the live head's numbers"
    )
    frozen: str | None = Field(default=None, description="why aligns change nothing")
    rejections: int = Field(default=0, description="in a row, on the current branch")
    anchors: AnchorsOut | None = None
    audit: AuditOut | None = None
    advice: Advice = "ok"
    disk: DiskOut | None = None


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
    pruned: bool = Field(default=False, description="its files are gone: it can only be looked at")
    pruned_at: str | None = None
    optimizer_bytes: int | None = Field(
        default=None, description="of its optimizer state, where that is kept"
    )
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
    branch: BranchName | None = None
    reason: str | None = Field(default=None, max_length=1000)


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
    template_date: str | None = Field(
        default=None, description="that the chat template writes; absent: it writes none"
    )
    truncation: str = Field(default="none", description="of texts that are scored without a run")
    empty_response: str = Field(
        default="score", description="of texts without a run, and of a new run that states none"
    )
