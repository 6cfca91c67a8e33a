"""The use cases around heads: see them, move aliases, go back."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.about import caller_name
from r2m_service.application.contract import (
    AliasOut,
    AliasRequest,
    HeadList,
    HeadOut,
    RollbackRequest,
    RunOut,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.label_port import LabelStore
from r2m_service.application.lookup import (
    find_head,
    find_run,
    find_stored,
    head_after,
    head_out,
    pruned,
    read_file,
    run_out,
)
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.usage import Usage
from r2m_service.domain.runs import (
    LIVE,
    REFERENCE,
    SERVER_ALIASES,
    Branch,
    Change,
    DiskUse,
    Head,
)

NAMED = 10
"""Heads that a refused rollback names at most."""

ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")


class Heads:
    """See a run and its heads; move aliases; go back.

    Args:
        heavy: what bounds work that holds several copies of a head.
        usage: counters by run.
        labels: outside labels, and what waits for them.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engine: Engine,
        heavy: asyncio.Semaphore,
        usage: Usage,
        labels: LabelStore,
    ) -> None:
        self._registry = registry
        self._labels = labels
        self._blobs = blobs
        self._engine = engine
        self._heavy = heavy
        self._usage = usage

    async def get_run(self, run: str) -> RunOut:
        """One run: usage, disk use, the live head's numbers. Raises Problem(unknown_run)."""
        state = await find_run(self._registry, run)
        live = await find_head(self._registry, state, LIVE)
        waiting = await asyncio.to_thread(self._labels.waiting_samples, run)
        disk = await asyncio.to_thread(self._registry.disk_use, run)
        return run_out(
            state,
            usage=self._usage.of(run),
            live=live,
            waiting=waiting,
            disk=disk.get(run, DiskUse()),
        )

    async def list_heads(self, run: str) -> HeadList:
        """All versions of a run. Raises Problem(unknown_run)."""
        state = await find_run(self._registry, run)
        heads = await asyncio.to_thread(self._registry.heads, run)
        return HeadList(heads=[head_out(state, head) for head in heads])

    async def get_head(self, run: str, head: str) -> HeadOut:
        """One version by number or alias. Raises Problem(unknown_*)."""
        state = await find_run(self._registry, run)
        return head_out(state, await find_head(self._registry, state, head))

    async def head_weights(self, run: str, head: str) -> tuple[HeadOut, bytes]:
        """A version and its safetensors file.

        Raises:
            Problem: unknown_*, head_pruned, head_damaged.
        """
        state = await find_run(self._registry, run)
        found = await find_stored(self._registry, state, head)
        async with self._heavy:
            return head_out(state, found), await asyncio.to_thread(
                read_file, self._registry, self._blobs, run, found, found.weights
            )

    async def set_alias(self, run: str, alias: str, request: AliasRequest) -> AliasOut:
        """Point an alias of the user's, or `reference`, at a version.

        Raises:
            Problem: alias_reserved, alias_moved, invalid_request, unknown_*, head_pruned.
        """
        state = await find_run(self._registry, run)
        state.run.require_open(self._engine.info)
        if alias in SERVER_ALIASES:
            raise Problem(
                Code.ALIAS_RESERVED,
                f"alias {alias!r} is moved by the server alone; rollback takes live back",
                field="alias",
            )
        if not ALIAS.fullmatch(alias):
            raise Problem(
                Code.INVALID_REQUEST,
                "an alias starts with a letter and has at most 100 letters, digits, '.', '_', '-'",
                field="alias",
            )
        head = await find_stored(self._registry, state, request.head)
        if alias == REFERENCE and not head.accepted:
            raise Problem(
                Code.INVALID_REQUEST,
                f"head {head.number} was {head.verdict}: drift cannot be measured against it",
                field="head",
            )
        previous = await asyncio.to_thread(
            self._registry.set_alias,
            run,
            alias,
            head.number,
            request.expect,
            Change(
                datetime.now(UTC),
                "alias",
                {"alias": alias, "head": head.number},
                caller=caller_name(),
            ),
        )
        return AliasOut(run=run, alias=alias, head=head.number, previous=previous)

    async def rollback(self, run: str, request: RollbackRequest) -> RunOut:
        """Open a branch at a head or after a step: live, optimizer state and t go back together.

        Raises:
            Problem: invalid_request, unknown_*, run_archived, backbone_mismatch, align_conflict,
                head_pruned.
        """
        if (request.to is None) == (request.to_step is None):
            raise Problem(
                Code.INVALID_REQUEST, "give either `to` (a head) or `to_step`", field="to"
            )
        state = await find_run(self._registry, run)
        state.run.require_open(self._engine.info)
        if request.to is not None:
            number, origin, step = request.to, None, None
        else:
            assert request.to_step is not None
            origin, step = state.branch(request.branch).name, request.to_step
            if step > state.branches[origin].step:
                raise Problem(
                    Code.INVALID_REQUEST,
                    f"branch {origin!r} stands at step {state.branches[origin].step}: it has no "
                    f"step {step}",
                    field="to_step",
                )
            number = await head_after(self._registry, state, origin, step)
        head = await find_head(self._registry, state, number)
        if not head.accepted:
            raise Problem(
                Code.INVALID_REQUEST,
                f"head {head.number} was {head.verdict}: it never was live and cannot become so",
                field="to",
            )
        if not head.resumable:
            raise await self._not_resumable(run, head)
        branch = Branch(
            name=f"b{len(state.branches)}",
            live=head.number,
            step=head.step if step is None else step,
            origin_branch=origin or head.branch,
            origin_head=head.number,
            origin_step=head.step if step is None else step,
            reason=request.reason,
        )
        detail = {
            "branch": branch.name,
            "head": branch.live,
            "step": branch.step,
            "from_branch": state.current,
            "from_head": state.branch(None).live,
        }
        change = Change(datetime.now(UTC), "rollback", detail, request.reason, caller_name())
        await asyncio.to_thread(self._registry.open_branch, run, branch, change)
        return await self.get_run(run)

    async def _not_resumable(self, run: str, head: Head) -> Problem:
        heads = await asyncio.to_thread(self._registry.heads, run)
        good = [str(one.number) for one in reversed(heads) if one.resumable]
        shown = ", ".join(good[:NAMED]) + (", …" if len(good) > NAMED else "")
        what = (
            f"the optimizer state of head {head.number} is not kept any more"
            if head.stored
            else pruned(run, head).message
        )
        return Problem(
            Code.HEAD_PRUNED,
            f"{what}: run {run!r} can go back to {shown or 'no head'} (an alias keeps a head with "
            "its optimizer state)",
            field="to",
        )
