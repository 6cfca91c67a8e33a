"""A fake's runs, branches and heads, and the answers' form of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from r2m.errors import Code, Problem
from r2m_client.testing._method import Method

LIVE, PREVIOUS, CANDIDATE, REFERENCE = "live", "previous", "candidate", "reference"
SERVER_ALIASES = frozenset({LIVE, PREVIOUS, CANDIDATE})
FIRST_BRANCH = "main"
TRUNCATION = "none"


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
    archived: bool = False
    current: str = FIRST_BRANCH
    branches: dict[str, Branch] = field(default_factory=dict[str, Branch])
    aliases: dict[str, int] = field(default_factory=dict[str, int])
    heads: list[Head] = field(default_factory=list[Head])
    steps: dict[tuple[str, int], Answered] = field(default_factory=dict[tuple[str, int], Answered])

    @property
    def created_with(self) -> dict[str, Any]:
        """What the same create_run must bring again."""
        return {
            "feedback": self.feedback,
            "policy": asdict(self.policy),
            "truncation": TRUNCATION,
            "method": asdict(self.method),
        }

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


def weights(run: Run, head: Head) -> bytes:
    """A version's safetensors file: the server's names and shapes, noise and zeros for weights."""
    from safetensors.numpy import save

    draw = np.random.default_rng(int(head.lineage[:16], 16))
    phi = draw.standard_normal((1, run.backbone_width), dtype=np.float32)
    tensors = {"head.weight": phi}
    if run.feedback != "none":
        inner = run.method.width
        for name, shape in (
            ("w_q", (run.backbone_width, inner)),
            ("w_k", (run.policy.hidden_size, inner)),
            ("w_v", (run.policy.hidden_size, inner)),
            ("w_o", (inner, run.backbone_width)),
        ):
            tensors[name] = np.zeros(shape, np.float32)
    metadata = {
        "format": "r2m-head-1",
        "fingerprint": run.fingerprint,
        "feedback": run.feedback,
        "method": asdict(run.method),
        "omega": head.omega,
        "t": head.t,
    }
    data = save(tensors, {"r2m": json.dumps(metadata, sort_keys=True)})
    head.file = (hashlib.sha256(data).hexdigest(), len(data))
    return data


def run_out(run: Run) -> dict[str, Any]:
    """A run, for an answer."""
    branch = run.branch(None)
    return {
        "run": run.name,
        "fingerprint": run.fingerprint,
        "policy": asdict(run.policy),
        "feedback": run.feedback,
        "method": asdict(run.method),
        "branch": branch.name,
        "step": branch.step,
        "next_step": branch.step + 1,
        "head": branch.live,
        "aliases": dict(run.aliases),
        "archived": run.archived,
        "created_at": run.created_at,
        "branches": [
            {
                "branch": one.name,
                "head": one.live,
                "step": one.step,
                "origin_branch": one.origin_branch,
                "origin_head": one.origin_head,
                "origin_step": one.origin_step,
                "reason": one.reason,
            }
            for one in run.branches.values()
        ],
        "truncation": TRUNCATION,
    }


def full_run_out(run: Run) -> dict[str, Any]:
    """A run with what it has used and the live head's numbers: where one run is asked for."""
    live = run.head(LIVE)
    return {
        **run_out(run),
        "usage": asdict(run.usage),
        "live": {"verdict": live.verdict, "t": live.t, **live.metrics},
    }


def head_out(run: Run, head: Head) -> dict[str, Any]:
    """A version, for an answer."""
    if head.file is None:
        weights(run, head)
    assert head.file is not None
    sha256, size = head.file
    return {
        "run": run.name,
        "head": head.number,
        "parent": head.parent,
        "branch": head.branch,
        "step": head.step,
        "t": head.t,
        "omega": head.omega,
        "reference": head.reference,
        "accepted": head.accepted,
        "verdict": head.verdict,
        "reason": head.reason,
        "metrics": head.metrics,
        "created_at": head.created_at,
        "sha256": sha256,
        "bytes": size,
        "aliases": sorted(name for name, at in run.aliases.items() if at == head.number),
    }
