"""Runs, branches, heads and the steps that were answered: what the registry keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from r2m.errors import Code, Problem
from r2m_service.domain.audit import AuditState
from r2m_service.domain.method import MethodSettings

FeedbackSource = Literal["policy", "backbone", "none"]
Truncation = Literal["none", "left", "right"]
EmptyResponse = Literal["score", "error"]
ChangeKind = Literal[
    "created",
    "updated",
    "archived",
    "alias",
    "rollback",
    "anchors",
    "frozen",
    "unfrozen",
    "repaired",
]
PrunedWhy = Literal["retention", "damaged"]
Convention = Literal["post_norm", "pre_norm"]

LIVE, PREVIOUS, CANDIDATE, REFERENCE = "live", "previous", "candidate", "reference"
SERVER_ALIASES = frozenset({LIVE, PREVIOUS, CANDIDATE})
FIRST_BRANCH = "main"


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy whose hidden states a run attends to.

    Attributes:
        hidden_size: D_p.
        hidden_state: taken after the final norm (Hugging Face) or before it (vLLM).
        last_token: whether the last token's state is among them.
    """

    hidden_size: int
    hidden_state: Convention = "post_norm"
    last_token: bool = True


@dataclass(frozen=True, slots=True)
class TextRules:
    """What becomes of texts that could be refused.

    Attributes:
        truncation: of a text with too many tokens: an error, or tokens come off that side.
        empty_response: whether an empty response to a prompt has a reward.
    """

    truncation: Truncation = "none"
    empty_response: EmptyResponse = "score"


class Served(Protocol):
    """What a server holds, as far as a run depends on it."""

    @property
    def fingerprint(self) -> str:
        """Of the backbone."""
        ...

    @property
    def template_date(self) -> str | None:
        """The day that the chat template writes; None: it writes none."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """One RL training run of one policy.

    Attributes:
        key: names its blobs: never a client's string.
        texts: what becomes of its texts that could be refused.
        template_date: the day that the backbone's chat template writes; None: it writes none.
        frozen: why aligns change nothing until somebody lifts it; None: they do.
    """

    name: str
    key: str
    fingerprint: str
    policy: Policy
    feedback: FeedbackSource
    method: MethodSettings
    created_at: datetime
    archived: bool = False
    texts: TextRules = TextRules()
    template_date: str | None = None
    frozen: str | None = None

    def require_open(self, served: Served) -> None:
        """Refuse everything but reading where the run cannot go on here.

        Raises:
            Problem: run_archived or backbone_mismatch.
        """
        if self.archived:
            raise Problem(Code.RUN_ARCHIVED, f"run {self.name!r} was archived: it is read-only")
        if self.fingerprint != served.fingerprint:
            raise Problem(
                Code.BACKBONE_MISMATCH,
                f"run {self.name!r} was made on backbone {self.fingerprint[:12]}, this server "
                f"holds {served.fingerprint[:12]}: it can only be read here"
                + self._other_date(served.template_date),
            )

    def _other_date(self, date: str | None) -> str:
        if self.template_date in (None, date) or date is None:
            return ""
        return (
            f". The chat template wrote the date {self.template_date} then and writes {date} "
            f"here: start the server with --template-date {self.template_date}"
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of steps.

    Attributes:
        step: the last one answered; `live`: the head after it.
        rejections: candidates rejected in a row.
    """

    name: str
    live: int
    step: int
    origin_branch: str | None = None
    origin_head: int | None = None
    origin_step: int | None = None
    reason: str | None = None
    rejections: int = 0


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A stored file: its key below the blob store's root, its SHA-256, its size in bytes."""

    key: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Head:
    """A version: immutable, one parent. `omega` is what it scores with, after `t` updates.

    Attributes:
        optimizer: None where there is none: at t = 0, of a candidate that was not accepted, and
            where it was let go.
        pruned_at, pruned_why: set where its files are gone: by the retention rule, or because
            they were damaged. What is known of the head stays.
    """

    number: int
    parent: int | None
    branch: str
    step: int
    t: int
    omega: float
    reference: int
    accepted: bool
    verdict: str
    reason: str
    metrics: Mapping[str, Any]
    created_at: datetime
    weights: BlobRef
    optimizer: BlobRef | None = None
    pruned_at: datetime | None = None
    pruned_why: PrunedWhy | None = None

    @property
    def stored(self) -> bool:
        """Whether it can score: its weights are kept."""
        return self.pruned_at is None

    @property
    def resumable(self) -> bool:
        """Whether align can go on from it: rollback needs that."""
        return self.accepted and self.stored and (self.t == 0 or self.optimizer is not None)


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What a run's kept heads take, by the registry's own rows."""

    heads: int = 0
    weights_bytes: int = 0
    optimizer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AnchorSet:
    """Held-out gold pairs that judge candidates.

    Attributes:
        number: of the set within its run, from 1.
        pairs: how many.
        looks: how often it has judged.
        file: the pairs' texts, as JSON.
    """

    number: int
    pairs: int
    looks: int
    file: BlobRef


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as it stands: one consistent read."""

    run: Run
    current: str
    branches: Mapping[str, Branch]
    aliases: Mapping[str, int] = field(default_factory=dict[str, int])
    anchors: AnchorSet | None = None
    audit: AuditState = field(default_factory=AuditState)

    def branch(self, name: str | None) -> Branch:
        """The named branch, or the current one.

        Raises:
            Problem: unknown_branch.
        """
        found = self.branches.get(name or self.current)
        if found is None:
            raise Problem(
                Code.UNKNOWN_BRANCH,
                f"run {self.run.name!r} has no branch {str(name)[:100]!r}; it has "
                f"{', '.join(sorted(self.branches))}",
                field="branch",
            )
        return found

    def head_number(self, named: int | str | None) -> int:
        """The number behind `live` (the default), an alias, or a number.

        Raises:
            Problem: unknown_alias.
        """
        if named is None or named == "":
            named = LIVE
        if isinstance(named, int):
            return named
        if named.isascii() and named.isdigit() and len(named) < 10:
            return int(named)
        number = self.aliases.get(named)
        if number is None:
            raise Problem(
                Code.UNKNOWN_ALIAS,
                f"run {self.run.name!r} has no alias {named[:100]!r}; it has "
                f"{', '.join(sorted(self.aliases))}",
                field="head",
            )
        return number


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of a run's audit trail: what a call changed, and why, if the call gave a reason.

    Attributes:
        caller: name of the API key that the call was made with; None on a server without keys, and
            of what the server or `r2m doctor` changed by itself.
    """

    at: datetime
    what: ChangeKind
    detail: Mapping[str, Any]
    reason: str | None = None
    caller: str | None = None


@dataclass(frozen=True, slots=True)
class AnsweredStep:
    """The first answer to (run, branch, step), and the hash of what was asked."""

    content_hash: str
    answer: str


@dataclass(frozen=True, slots=True)
class StepCommit:
    """What one align changes, all or nothing.

    Attributes:
        parent: the branch's live head this was computed from: compared before the swap.
        live: the branch's live head afterwards.
        candidate: the new version, or None where the step made none.
        answer: the JSON that every retry gets.
        rejections: of the branch, in a row, afterwards.
        freeze: why the run freezes with this step; None: it does not.
        reference: where the alias `reference` moves to; None: it stays.
        look: whether the anchor set judged.
        trained: hashes of the prompts whose outside labels were learnt from.
    """

    run: str
    branch: str
    step: int
    parent: int
    live: int
    candidate: Head | None
    content_hash: str
    answer: str
    at: datetime
    rejections: int = 0
    freeze: str | None = None
    reference: int | None = None
    look: bool = False
    trained: frozenset[str] = frozenset()
