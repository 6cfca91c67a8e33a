"""Finding runs and heads, and the answers' form of both."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.contract import (
    NAME_PATTERN,
    AnchorsOut,
    AuditOut,
    BranchOut,
    DiskOut,
    HeadOut,
    PolicyOut,
    RunOut,
    UsageOut,
)
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.scoring_items import HeadKey, HeadSource
from r2m_service.domain.audit import AuditState
from r2m_service.domain.runs import (
    FIRST_BRANCH,
    LIVE,
    BlobRef,
    Branch,
    DiskUse,
    Head,
    Run,
    RunState,
)

RUN_NAME = re.compile(NAME_PATTERN)


async def find_run(registry: Registry, name: str) -> RunState:
    """A run as it stands.

    Raises:
        Problem: unknown_run.
    """
    # A name that nobody can have given need not reach the database, whatever bytes are in it.
    known = RUN_NAME.fullmatch(name) is not None
    state = await asyncio.to_thread(registry.run_state, name) if known else None
    if state is None:
        raise Problem(Code.UNKNOWN_RUN, f"there is no run {name[:100]!r}", field="run")
    return state


async def find_head(registry: Registry, state: RunState, named: int | str | None) -> Head:
    """A version by number or alias.

    Raises:
        Problem: unknown_alias or unknown_head.
    """
    number = state.head_number(named)
    head = await asyncio.to_thread(registry.head, state.run.name, number)
    if head is None:
        raise Problem(
            Code.UNKNOWN_HEAD, f"run {state.run.name!r} has no head {number}", field="head"
        )
    return head


async def find_stored(registry: Registry, state: RunState, named: int | str | None) -> Head:
    """A version that can score.

    Raises:
        Problem: unknown_alias, unknown_head or head_pruned.
    """
    head = await find_head(registry, state, named)
    if not head.stored:
        raise pruned(state.run.name, head)
    return head


def pruned(run: str, head: Head) -> Problem:
    """The error of a version whose files are gone."""
    when = "" if head.pruned_at is None else f" on {head.pruned_at:%Y-%m-%d %H:%M} UTC"
    why = (
        "its files were damaged, and `r2m doctor --repair` let go of it"
        if head.pruned_why == "damaged"
        else "the retention rule let go of its files"
    )
    return Problem(
        Code.HEAD_PRUNED,
        f"head {head.number} of run {run!r} is not kept any more: {why}{when}; what is known of "
        "it can still be looked at",
        field="head",
    )


def read_file(registry: Registry, blobs: Blobs, run: str, head: Head, ref: BlobRef) -> bytes:
    """One of a version's files. Blocking.

    Raises:
        Problem: head_pruned, where it was let go since `head` was read; head_damaged or
            storage_failed.
    """
    try:
        return blobs.get(ref)
    except Problem as problem:
        if problem.code != Code.HEAD_DAMAGED:
            raise
        now = registry.head(run, head.number)
        if now is not None and (not now.stored or ref not in (now.weights, now.optimizer)):
            raise pruned(run, now) from problem
        raise


async def scoring_head(
    registry: Registry,
    state: RunState,
    *,
    head: int | str | None,
    step: int | None,
    branch: str | None,
) -> tuple[Head, str]:
    """The version that answers a score, and the branch a trainer goes on with.

    `step` asks for the head that scores that step of a branch: the one that was live after the
    step before. It is recorded, so every replica answers alike at any time.

    Raises:
        Problem: invalid_request, step_out_of_order, unknown_*, head_pruned.
    """
    if step is None and branch is None:
        found = await find_stored(registry, state, head)
        live = found.number == state.branch(None).live
        return found, state.current if live else found.branch
    if head not in (None, "", LIVE):
        raise Problem(
            Code.INVALID_REQUEST, "give either `head`, or `step` and `branch`", field="step"
        )
    on = state.branch(branch)
    if step is None:
        return await find_stored(registry, state, on.live), on.name
    if step > on.step + 1:
        raise Problem(
            Code.STEP_OUT_OF_ORDER,
            f"branch {on.name!r} has been aligned up to step {on.step}: it scores up to step "
            f"{on.step + 1}, not {step}",
            field="step",
        )
    number = await head_after(registry, state, on.name, step - 1)
    return await find_stored(registry, state, number), on.name


async def head_after(registry: Registry, state: RunState, name: str, step: int) -> int:
    """The head that was live after a step of a branch, followed back over its origins."""
    while True:
        branch = state.branches[name]
        found = await asyncio.to_thread(registry.head_after_step, state.run.name, name, step)
        if found is not None:
            return found
        if branch.origin_branch is None or branch.origin_head is None:
            return 0  # before the first step of the first branch
        if step == branch.origin_step:
            return branch.origin_head
        name = branch.origin_branch


def head_source(registry: Registry, blobs: Blobs, run: Run, head: Head) -> HeadSource:
    """How the engine gets a version's weights."""
    return HeadSource(
        run=run.name,
        key=HeadKey(head.weights.sha256, head.omega),
        feedback=run.feedback,
        read=lambda: read_file(registry, blobs, run.name, head, head.weights),
        keeps_states=run.feedback == "backbone" or "backbone" in run.method.controls,
    )


def run_out(
    state: RunState,
    *,
    usage: UsageOut | None = None,
    live: Head | None = None,
    waiting: int | None = None,
    disk: DiskUse | None = None,
) -> RunOut:
    """A run, for an answer; usage, disk, the live head's numbers, the audit where one is asked."""
    run, branch = state.run, state.branch(None)
    return RunOut(
        run=run.name,
        fingerprint=run.fingerprint,
        policy=PolicyOut(**asdict(run.policy)),
        feedback=run.feedback,
        method=asdict(run.method),
        branch=branch.name,
        step=branch.step,
        next_step=branch.step + 1,
        head=branch.live,
        aliases=dict(state.aliases),
        archived=run.archived,
        created_at=timestamp(run.created_at),
        branches=[
            BranchOut(
                branch=one.name,
                head=one.live,
                step=one.step,
                origin_branch=one.origin_branch,
                origin_head=one.origin_head,
                origin_step=one.origin_step,
                reason=one.reason,
            )
            for one in sorted(state.branches.values(), key=_opened)
        ],
        **asdict(run.texts),
        template_date=run.template_date,
        usage=usage,
        live={} if live is None else {"verdict": live.verdict, "t": live.t, **live.metrics},
        frozen=run.frozen,
        rejections=branch.rejections,
        anchors=anchors_out(state),
        audit=None if waiting is None else audit_out(state.audit, waiting),
        advice=state.audit.advice,
        disk=None if disk is None else DiskOut(**asdict(disk)),
    )


def anchors_out(state: RunState) -> AnchorsOut | None:
    """The anchor set that judges, for an answer."""
    if state.anchors is None:
        return None
    return AnchorsOut(
        run=state.run.name,
        set=state.anchors.number,
        pairs=state.anchors.pairs,
        looks=state.anchors.looks,
        sha256=state.anchors.file.sha256,
        next_step=next_anchors(state, state.branch(None).step),
    )


def next_anchors(state: RunState, step: int) -> int | None:
    """The first step after `step` at which the anchors' hidden states come along."""
    every = state.run.method.gate.anchors_every
    if state.anchors is None or every is None:
        return None
    return (step // every + 1) * every


def audit_out(audit: AuditState, waiting: int) -> AuditOut:
    """The audited gap, for an answer."""
    return AuditOut(
        judged=audit.judged,
        waiting=waiting,
        gap=audit.gap,
        cusum=audit.cusum,
        note=audit.note,
    )


def _opened(branch: Branch) -> tuple[bool, int, str]:
    """Sorts branches as they were opened: main, b1, b2, …, b10."""
    return branch.name != FIRST_BRANCH, len(branch.name), branch.name


def head_out(state: RunState, head: Head) -> HeadOut:
    """A version, for an answer."""
    return HeadOut(
        run=state.run.name,
        head=head.number,
        parent=head.parent,
        branch=head.branch,
        step=head.step,
        t=head.t,
        omega=head.omega,
        reference=head.reference,
        accepted=head.accepted,
        verdict=head.verdict,
        reason=head.reason,
        metrics=dict(head.metrics),
        created_at=timestamp(head.created_at),
        sha256=head.weights.sha256,
        bytes=head.weights.size,
        pruned=not head.stored,
        pruned_at=None if head.pruned_at is None else timestamp(head.pruned_at),
        optimizer_bytes=None if head.optimizer is None else head.optimizer.size,
        aliases=sorted(name for name, number in state.aliases.items() if number == head.number),
    )


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
