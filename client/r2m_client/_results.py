"""What the server answers, as frozen values.

Fields have the names of the interface. An optional field is None where the answer leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r2m_client._control_results import Controls
from r2m_client._errors import SamplesFailed, ServerError
from r2m_client._label_results import AnchorsInfo, AnchorsJudged, AuditInfo, Evidence
from r2m_client.split import Context


@dataclass(frozen=True, slots=True)
class Score:
    """One sample's rewards, or its error.

    Attributes:
        id: the sample's.
        reward: by the run's head; None with an error.
        vanilla_reward: the frozen reward model's own.
        error: why there is no reward (an instance, not raised), or None.
        tokens: of the text as the reward model read it.
        states: hidden states received.
        truncated: tokens cut off, where the run cuts.
        finish_reason: as it was sent.
        audit: whether it is marked for an outside label (`Client.add_labels`).
        u: the absorbed query, where its states stayed here and nothing was told of them yet.
        feedback_bytes: that its feedback took, both ways.
    """

    id: str
    reward: float | None = None
    vanilla_reward: float | None = None
    error: ServerError | None = None
    tokens: int | None = None
    states: int | None = None
    truncated: int | None = None
    finish_reason: str | None = None
    audit: bool = False
    u: bytes | None = field(default=None, repr=False)
    feedback_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Rewards in the order of the samples; one head made them all.

    Attributes:
        fingerprint: of the backbone.
        run, head, branch, omega: which head it was; None without a run.
        scores: one per sample.
        advice: what the audited gap says: ok, warn, stop; None without a run.
        v: with scores that have a u: what goes with it.
        context: of a score with split feedback: what align takes the same head's u and v from.
    """

    fingerprint: str
    run: str | None = None
    head: int | None = None
    branch: str | None = None
    omega: float | None = None
    scores: tuple[Score, ...] = ()
    advice: str | None = None
    v: bytes | None = field(default=None, repr=False)
    context: Context | None = field(default=None, repr=False)

    @property
    def rewards(self) -> list[float | None]:
        """The rewards, None where a sample has an error; without a run the vanilla rewards."""
        if self.run is None:
            return [s.vanilla_reward if s.reward is None else s.reward for s in self.scores]
        return [s.reward for s in self.scores]

    def raise_for_errors(self) -> ScoreResult:
        """This result, if every sample has its reward.

        Raises:
            SamplesFailed: with each failed sample's error; its cause is the first of them.
        """
        errors = {score.id: score.error for score in self.scores if score.error is not None}
        if errors:
            name, first = next(iter(errors.items()))
            raise SamplesFailed(
                f"{len(errors)} of {len(self.scores)} samples have no reward; {name!r}: {first}",
                errors=errors,
            ) from first
        return self


@dataclass(frozen=True, slots=True)
class Loss:
    """Means over the used groups, before the update; None: not computed."""

    bt: float | None = None
    gre: float | None = None
    kl: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """What became of the groups: used = pseudo + labelled.

    Attributes:
        replayed: pairs with outside labels learnt from again.
        withheld: outside labels not used, since their prompt judges.
        disagree: outside labels that the reward had otherwise.
    """

    used: int
    skipped: int
    pseudo: int
    labelled: int
    skipped_because: dict[str, int] = field(default_factory=dict[str, int])
    replayed: int = 0
    withheld: int = 0
    disagree: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """The candidate against the reference head, both at the candidate's ω."""

    reference: int
    samples: int
    spread_ratio: float | None = None
    rank_correlation: float | None = None


@dataclass(frozen=True, slots=True)
class SampleError:
    """A sample that align could not use; its group was left out."""

    id: str
    group: str
    error: ServerError


@dataclass(frozen=True, slots=True)
class SkippedGroup:
    """A group that align leaves out: because of error, equal, too_few or unlabelled."""

    id: str
    because: str
    errors: tuple[SampleError, ...] = ()


@dataclass(frozen=True, slots=True)
class AlignProgress:
    """How far an align is.

    Attributes:
        groups_total: those that the device works on.
        skipped: groups found to be unusable since the last time.
    """

    groups_done: int
    groups_total: int
    skipped: tuple[SkippedGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class AlignResult:
    """The first and only answer to (run, branch, step).

    Attributes:
        head: live afterwards; omega is this head's.
        candidate: the new version, or None where the step made none.
        parent: the head that was trained from.
        verdict: accepted, rejected, undecided, skipped or frozen; reason says why.
        sigma: mean within-group standard deviation of the rewards.
        anchors: what they said of the candidate, where they judged.
        anchors_step: the next step that brings the anchors' hidden states.
        evidence: numbers that inform and never decide.
        controls: what the run's shadow arms say, where it has some.
        advice: what the audited gap says: ok, warn, stop.
        feedback_bytes: that this step's feedback took, both ways.
    """

    run: str
    step: int
    branch: str
    head: int
    parent: int
    accepted: bool
    verdict: str
    reason: str
    omega: float
    loss: Loss
    groups: GroupCounts
    candidate: int | None = None
    drift: Drift | None = None
    sigma: float | None = None
    gradient_norm: float | None = None
    errors: tuple[SampleError, ...] = ()
    notes: tuple[str, ...] = ()
    anchors: AnchorsJudged | None = None
    anchors_step: int | None = None
    evidence: Evidence | None = None
    controls: Controls | None = None
    advice: str | None = None
    feedback_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A sample's absorbed query, D_p float32."""

    id: str
    u: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """What an align wants to know of states that stayed here: `want` is fused or pooled."""

    because: str
    want: str
    v: bytes = field(repr=False)
    queries: tuple[Query, ...]
    head: int | None = None


@dataclass(frozen=True, slots=True)
class AlignPending:
    """An align that asks before it answers."""

    run: str
    step: int
    branch: str
    ticket: str
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """The policy whose hidden states a run attends to; hidden_size is D_p."""

    hidden_size: int | None = None
    hidden_state: str | None = None
    last_token: bool | None = None


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """A line of steps: `step` is the last one answered, `head` is live after it."""

    branch: str
    head: int
    step: int
    origin_branch: str | None = None
    origin_head: int | None = None
    origin_step: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class UsageInfo:
    """What a run has used of one server process, since it started (RFC 3339, UTC)."""

    since: str
    samples: int = 0
    failed: int = 0
    tokens: int = 0
    feedback_bytes: int = 0
    device_seconds: float = 0.0
    aligns: int = 0


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """What a run's kept heads take on the server: versions, and bytes of their files."""

    heads: int = 0
    weights_bytes: int = 0
    optimizer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of a run's audit trail.

    Attributes:
        at: RFC 3339, UTC.
        what: created, updated, archived, alias, rollback, anchors, frozen, unfrozen or repaired.
        detail: what changed; of an update, by key: [before, after].
        caller: name of the API key that the call was made with; None on a server without keys, and
            of what the server changed by itself.
    """

    at: str
    what: str
    detail: dict[str, Any] = field(default_factory=dict[str, Any])
    reason: str | None = None
    caller: str | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a head prefers the chosen sample.

    Attributes:
        head: None: the frozen reward model.
        accuracy: ties count half; low and high: its 95 % Wilson interval.
        better, worse: pairs right where the first head is wrong, and the other way round;
            p_value: exact two-sided sign test on those. None for the first head.
        margins: where they were asked for: the reward of the chosen sample less that of the
            rejected one, of each pair that could be judged, in the call's order.
    """

    accuracy: float
    low: float
    high: float
    correct: int
    ties: int
    head: int | None = None
    better: int | None = None
    worse: int | None = None
    p_value: float | None = None
    margins: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracies on the pairs that could be judged: the same pairs for every head."""

    run: str
    pairs: int
    vanilla: Accuracy
    heads: tuple[Accuracy, ...] = ()
    errors: tuple[SampleError, ...] = ()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as it stands.

    Attributes:
        method: all settings, resolved; whole numbers are ints.
        branch: the current one; step, next_step and head are its own.
        created_at: RFC 3339, UTC.
        truncation: none (too long is an error), left or right.
        empty_response: score, or error (text_empty).
        template_date: that the server's chat template writes; None: it writes none.
        usage, live: where one run is asked for: counters, and the live head's numbers.
        frozen: why aligns change nothing; None: they do.
        rejections: in a row, on the current branch.
        disk: there, and where runs are listed: what its kept heads take.
    """

    run: str
    fingerprint: str
    feedback: str
    branch: str
    step: int
    next_step: int
    head: int
    archived: bool
    created_at: str
    policy: PolicyInfo = PolicyInfo()
    method: dict[str, Any] = field(default_factory=dict[str, Any])
    aliases: dict[str, int] = field(default_factory=dict[str, int])
    branches: tuple[BranchInfo, ...] = ()
    truncation: str = "none"
    empty_response: str = "error"
    template_date: str | None = None
    usage: UsageInfo | None = None
    live: dict[str, Any] = field(default_factory=dict[str, Any])
    frozen: str | None = None
    rejections: int = 0
    anchors: AnchorsInfo | None = None
    audit: AuditInfo | None = None
    advice: str = "ok"
    disk: DiskInfo | None = None


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """A version and the verdict on it.

    Attributes:
        t: accepted updates so far; omega is what this head scores with.
        sha256, bytes: of the weights file.
        pruned, pruned_at: whether its files are gone (it can only be looked at then), and since
            when (RFC 3339, UTC).
        optimizer_bytes: of its optimizer state, which rollback needs where t > 0; None: not kept.
    """

    run: str
    head: int
    branch: str
    step: int
    t: int
    omega: float
    reference: int
    accepted: bool
    verdict: str
    reason: str
    created_at: str
    sha256: str
    bytes: int
    parent: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    aliases: tuple[str, ...] = ()
    pruned: bool = False
    pruned_at: str | None = None
    optimizer_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AliasInfo:
    """An alias after a move; previous is None where it is new."""

    run: str
    alias: str
    head: int
    previous: int | None = None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server holds.

    Attributes:
        hidden_size: the backbone's own.
        max_length: in tokens.
        template_date: that the chat template writes in place of the current day; None: none.
        truncation: of texts that are scored without a run.
        empty_response: of texts without a run, and of a new run that states none.
    """

    version: str
    model: str
    fingerprint: str
    hidden_size: int
    max_length: int
    dtype: str
    device: str
    deterministic: bool
    chat_template: bool
    template_date: str | None = None
    truncation: str = "none"
    empty_response: str = "error"
