"""A fake's runs, branches and heads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from r2m.errors import Code, Problem
from r2m_client.testing._method import Method

LIVE, PREVIOUS, CANDIDATE, REFERENCE = "live", "previous", "candidate", "reference"
SERVER_ALIASES = frozenset({LIVE, PREVIOUS, CANDIDATE})
FIRST_BRANCH = "main"
EMPTY_RESPONSE = "score"
"""Without a run, and of a run that states nothing: the server's own default."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose hidden states a run takes."""

    hidden_size: int
    hidden_state: str = "post_norm"
    last_token: bool = True


@dataclass(slots=True)
class Branch:
    """A line of steps; `step` is the last one answered."""

    name: str
    live: int
    step: int
    origin_branch: str | None = None
    origin_head: int | None = None
    origin_step: int | None = None
    reason: str | None = None
    rejections: int = 0


@dataclass(slots=True)
class Head:
    """A version. `lineage` hashes all it was made from: equal ones have equal weights."""

    number: int
    parent: int | None
    branch: str
    step: int
    t: int
    omega: float
    reference: int
    verdict: str
    reason: str
    created_at: str
    lineage: str
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    asked: frozenset[frozenset[str]] = frozenset()
    """Pairs of texts that its controls were asked."""
    file: tuple[str, int] | None = None
    """SHA-256 and size of the weights, once somebody asked: wide heads take a while to hash."""

    @property
    def accepted(self) -> bool:
        """Whether it may be live."""
        return self.verdict == "accepted"


@dataclass(frozen=True, slots=True)
class Answered:
    """The first answer to a step, the hash of what was asked, and the head live afterwards."""

    content: str
    answer: str
    live: int


@dataclass(slots=True)
class Usage:
    """What a run's calls amounted to. No device works here: its seconds stay 0."""

    since: str
    samples: int = 0
    failed: int = 0
    tokens: int = 0
    feedback_bytes: int = 0
    device_seconds: float = 0.0
    aligns: int = 0


@dataclass(slots=True)
class AnchorSet:
    """Pairs that judge, as they were sent, by id; `prompts` never train."""

    number: int
    pairs: dict[str, dict[str, Any]]
    sha256: str
    prompts: frozenset[str]
    looks: int = 0


@dataclass(slots=True)
class Kept:
    """A marked sample, as the answers have it, and what was said of it."""

    number: int
    out: dict[str, Any]
    query: str
    labels: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    losses: int = 0
    """How many preferences name it as the worse one."""

    @property
    def waits(self) -> bool:
        """Whether nobody has said anything of it."""
        return not self.labels and not self.losses


@dataclass(slots=True)
class Run:
    """A run with all that belongs to it."""

    name: str
    fingerprint: str
    policy: Policy
    feedback: str
    method: Method
    created_at: str
    backbone_width: int
    usage: Usage
    truncation: str = "none"
    empty_response: str = EMPTY_RESPONSE
    archived: bool = False
    frozen: str | None = None
    anchors: AnchorSet | None = None
    judged: int = 0
    created_with: dict[str, Any] = field(default_factory=dict[str, Any])
    changes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    trained: set[str] = field(default_factory=set[str])
    current: str = FIRST_BRANCH
    branches: dict[str, Branch] = field(default_factory=dict[str, Branch])
    aliases: dict[str, int] = field(default_factory=dict[str, int])
    heads: list[Head] = field(default_factory=list[Head])
    steps: dict[tuple[str, int], Answered] = field(default_factory=dict[tuple[str, int], Answered])

    @property
    def settings(self) -> dict[str, Any]:
        """What the same create_run must bring again."""
        return {
            "feedback": self.feedback,
            "policy": asdict(self.policy),
            "truncation": self.truncation,
            "empty_response": self.empty_response,
            "method": asdict(self.method),
        }

    def changed(
        self, at: str, what: str, detail: dict[str, Any], reason: str | None = None
    ) -> None:
        """One entry more in the audit trail."""
        entry = {"at": at, "what": what, "detail": detail}
        self.changes.append(entry if reason is None else {**entry, "reason": reason})

    def next_anchors(self, step: int) -> int | None:
        """The first step after `step` at which the anchors' hidden states come along."""
        every = self.method.gate.anchors_every
        if self.anchors is None or every is None:
            return None
        return (step // every + 1) * every

    def require_open(self, fingerprint: str) -> None:
        """Refuse everything but reading where the run cannot go on.

        Raises:
            Problem: run_archived or backbone_mismatch.
        """
        if self.archived:
            raise Problem(Code.RUN_ARCHIVED, f"run {self.name!r} was archived: it is read-only")
        if self.fingerprint != fingerprint:
            raise Problem(
                Code.BACKBONE_MISMATCH,
                f"run {self.name!r} was made on backbone {self.fingerprint[:12]}, this server "
                f"holds {fingerprint[:12]}: it can only be read here",
            )

    def branch(self, name: str | None) -> Branch:
        """The named branch, or the current one. Raises Problem(unknown_branch)."""
        found = self.branches.get(name or self.current)
        if found is None:
            raise Problem(
                Code.UNKNOWN_BRANCH,
                f"run {self.name!r} has no branch {str(name)[:100]!r}; it has "
                f"{', '.join(sorted(self.branches))}",
                field="branch",
            )
        return found

    def head(self, named: int | str | None) -> Head:
        """A version by number or alias. Raises Problem(unknown_alias or unknown_head)."""
        if isinstance(named, str) and named.isascii() and named.isdigit() and len(named) < 10:
            named = int(named)
        number = named if isinstance(named, int) else self.aliases.get(named or LIVE)
        if number is None:
            raise Problem(
                Code.UNKNOWN_ALIAS,
                f"run {self.name!r} has no alias {str(named)[:100]!r}; it has "
                f"{', '.join(sorted(self.aliases))}",
                field="head",
            )
        if not 0 <= number < len(self.heads):
            raise Problem(
                Code.UNKNOWN_HEAD, f"run {self.name!r} has no head {number}", field="head"
            )
        return self.heads[number]

    def scoring_head(
        self, head: int | str | None, step: int | None, branch: str | None
    ) -> tuple[Head, str]:
        """The version that answers a score, and the branch a trainer goes on with.

        Raises:
            Problem: invalid_request, step_out_of_order, unknown_*.
        """
        if step is None and branch is None:
            found = self.head(head)
            live = found.number == self.branch(None).live
            return found, self.current if live else found.branch
        if head not in (None, "", LIVE):
            raise Problem(
                Code.INVALID_REQUEST, "give either `head`, or `step` and `branch`", field="step"
            )
        on = self.branch(branch)
        if step is None:
            return self.heads[on.live], on.name
        if step > on.step + 1:
            raise Problem(
                Code.STEP_OUT_OF_ORDER,
                f"branch {on.name!r} has been aligned up to step {on.step}: it scores up to step "
                f"{on.step + 1}, not {step}",
                field="step",
            )
        return self.heads[self.head_after(on.name, step - 1)], on.name

    def head_after(self, name: str, step: int) -> int:
        """The head that was live after a step, followed back over the branch's origin.

        Raises:
            Problem: invalid_request, where the branch has not come that far.
        """
        branch = self.branches[name]
        if step > branch.step:
            raise Problem(
                Code.INVALID_REQUEST,
                f"branch {name!r} stands at step {branch.step}: it has no step {step}",
                field="to_step",
            )
        answered = self.steps.get((name, step))
        if answered is not None:
            return answered.live
        if branch.origin_branch is None or branch.origin_head is None:
            return 0
        if step == branch.origin_step:
            return branch.origin_head
        return self.head_after(branch.origin_branch, step)

    def move_live(self, live: int) -> None:
        """Point `live` at a head, and `previous` at where it was."""
        before = self.aliases[LIVE]
        if before != live:
            self.aliases |= {LIVE: live, PREVIOUS: before}
