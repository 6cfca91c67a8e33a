"""The use cases around runs, heads and aliases."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from r2m.errors import Code, Problem
from r2m_service.application.contract import (
    AliasOut,
    AliasRequest,
    CreateRunRequest,
    HeadList,
    HeadOut,
    RollbackRequest,
    RunList,
    RunOut,
)
from r2m_service.application.lookup import find_head, find_run, head_out, run_out
from r2m_service.application.parsing import parse
from r2m_service.application.ports import Blobs, Engine, Registry
from r2m_service.domain.method import MethodSettings, with_defaults
from r2m_service.domain.runs import (
    FIRST_BRANCH,
    REFERENCE,
    SERVER_ALIASES,
    Branch,
    Head,
    Policy,
    Run,
    RunState,
)

ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
FLOAT32_BYTES = 4


class Runs:
    """Create, see and archive runs; see their heads; move aliases; go back.

    Args:
        heavy: what bounds work that holds several copies of a head.
        max_head_bytes: of one version's weights: what a run's sizes may ask for.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engine: Engine,
        heavy: asyncio.Semaphore,
        *,
        max_head_bytes: int,
    ) -> None:
        self._registry = registry
        self._blobs = blobs
        self._engine = engine
        self._heavy = heavy
        self._max_head_bytes = max_head_bytes

    async def create_run(self, request: CreateRunRequest) -> tuple[RunOut, bool]:
        """A new run with version 0, or the run as it is where the same settings come again.

        Returns:
            The run, and whether it is new.

        Raises:
            Problem: invalid_request, run_exists, backbone_mismatch, storage_failed.
        """
        run = self._run(request)
        existing = await asyncio.to_thread(self._registry.run_state, run.name)
        if existing is None:
            try:
                async with self._heavy:
                    await asyncio.to_thread(self._store, run)
            except Problem as problem:
                if problem.code != Code.RUN_EXISTS:
                    raise
                existing = await find_run(self._registry, run.name)  # somebody was faster
        if existing is not None:
            _require_same(existing.run, run)
            return run_out(existing), False
        return run_out(await find_run(self._registry, run.name)), True

    def _run(self, request: CreateRunRequest) -> Run:
        info = self._engine.info
        feedback = request.feedback or "policy"
        given = request.policy.hidden_size if request.policy else None
        if feedback == "policy" and given is None:
            raise Problem(
                Code.INVALID_REQUEST,
                "a run with feedback policy needs its policy's hidden size",
                field="policy.hidden_size",
            )
        if feedback != "policy" and given not in (None, info.hidden_size):
            raise Problem(
                Code.INVALID_REQUEST,
                f"a run with feedback {feedback} reads the backbone's own states, which are "
                f"{info.hidden_size} wide, not {given}",
                field="policy.hidden_size",
            )
        policy = Policy(hidden_size=given or info.hidden_size)
        if request.policy is not None and feedback == "policy":
            policy = Policy(
                hidden_size=policy.hidden_size,
                hidden_state=request.policy.hidden_state or "post_norm",
                last_token=request.policy.last_token is not False,
            )
        method = _method(request.method, policy.hidden_size, attends=feedback != "none")
        if feedback != "none":
            self._require_size(policy.hidden_size, method.width)
        return Run(
            name=request.run,
            key=uuid.uuid4().hex,
            fingerprint=info.fingerprint,
            policy=policy,
            feedback=feedback,
            method=method,
            created_at=datetime.now(UTC),
        )

    def _require_size(self, policy_width: int, inner: int) -> None:
        size = 2 * inner * (policy_width + self._engine.info.hidden_size) * FLOAT32_BYTES
        if size > self._max_head_bytes:
            raise Problem(
                Code.INVALID_REQUEST,
                f"a head of hidden size {policy_width} and width {inner} takes {size} bytes, this "
                f"server allows {self._max_head_bytes}",
                field="method.width",
            )

    def _store(self, run: Run) -> None:
        weights = self._engine.first_head(
            policy_width=run.policy.hidden_size, feedback=run.feedback, method=run.method
        )
        ref = self._blobs.put(f"{run.key}/{uuid.uuid4().hex}.safetensors", weights)
        head = Head(
            number=0,
            parent=None,
            branch=FIRST_BRANCH,
            step=0,
            t=0,
            omega=run.method.omega.at(1),
            reference=0,
            accepted=True,
            verdict="accepted",
            reason="version 0: ranks as the frozen reward model",
            metrics={},
            created_at=run.created_at,
            weights=ref,
        )
        try:
            self._registry.create_run(run, head)
        except Problem as problem:
            if problem.code == Code.RUN_EXISTS:
                self._blobs.delete(ref.key)
            raise

    async def list_runs(self) -> RunList:
        """All runs, oldest first."""
        states = await asyncio.to_thread(self._registry.run_states)
        return RunList(runs=[run_out(state) for state in states])

    async def get_run(self, run: str) -> RunOut:
        """One run. Raises Problem(unknown_run)."""
        return run_out(await find_run(self._registry, run))

    async def archive_run(self, run: str) -> RunOut:
        """Make a run read-only; doing it again is fine. Raises Problem(unknown_run)."""
        state = await find_run(self._registry, run)
        if not state.run.archived:
            state.run.require_open(self._engine.info.fingerprint)
            await asyncio.to_thread(self._registry.archive_run, run)
        return await self.get_run(run)

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
        """A version and its safetensors file. Raises Problem(unknown_*, head_damaged)."""
        state = await find_run(self._registry, run)
        found = await find_head(self._registry, state, head)
        async with self._heavy:
            return head_out(state, found), await asyncio.to_thread(self._blobs.get, found.weights)

    async def set_alias(self, run: str, alias: str, request: AliasRequest) -> AliasOut:
        """Point an alias of the user's, or `reference`, at a version.

        Raises:
            Problem: alias_reserved, alias_moved, invalid_request, unknown_*.
        """
        state = await find_run(self._registry, run)
        state.run.require_open(self._engine.info.fingerprint)
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
        head = await find_head(self._registry, state, request.head)
        if alias == REFERENCE and not head.accepted:
            raise Problem(
                Code.INVALID_REQUEST,
                f"head {head.number} was {head.verdict}: drift cannot be measured against it",
                field="head",
            )
        previous = await asyncio.to_thread(
            self._registry.set_alias, run, alias, head.number, request.expect
        )
        return AliasOut(run=run, alias=alias, head=head.number, previous=previous)

    async def rollback(self, run: str, request: RollbackRequest) -> RunOut:
        """Open a branch at a head or after a step: live, optimizer state and t go back together.

        Raises:
            Problem: invalid_request, unknown_*, run_archived, backbone_mismatch, align_conflict.
        """
        if (request.to is None) == (request.to_step is None):
            raise Problem(
                Code.INVALID_REQUEST, "give either `to` (a head) or `to_step`", field="to"
            )
        state = await find_run(self._registry, run)
        state.run.require_open(self._engine.info.fingerprint)
        if request.to is not None:
            number, origin, step = request.to, None, None
        else:
            assert request.to_step is not None
            origin, step = state.branch(request.branch).name, request.to_step
            number = await self._head_after(state, origin, step)
        head = await find_head(self._registry, state, number)
        if not head.accepted:
            raise Problem(
                Code.INVALID_REQUEST,
                f"head {head.number} was {head.verdict}: it never was live and cannot become so",
                field="to",
            )
        branch = Branch(
            name=f"b{len(state.branches)}",
            live=head.number,
            step=head.step if step is None else step,
            origin_branch=origin or head.branch,
            origin_head=head.number,
            origin_step=head.step if step is None else step,
            reason=request.reason,
        )
        await asyncio.to_thread(self._registry.open_branch, run, branch)
        return await self.get_run(run)

    async def _head_after(self, state: RunState, name: str, step: int) -> int:
        """The head that was live after a step, followed back over the branches' origins."""
        if step > state.branches[name].step:
            raise Problem(
                Code.INVALID_REQUEST,
                f"branch {name!r} stands at step {state.branches[name].step}: it has no step "
                f"{step}",
                field="to_step",
            )
        while True:
            branch = state.branches[name]
            found = await asyncio.to_thread(
                self._registry.head_after_step, state.run.name, name, step
            )
            if found is not None:
                return found
            if branch.origin_branch is None or branch.origin_head is None:
                return 0  # before the first step of the first branch
            if step == branch.origin_step:
                return branch.origin_head
            name = branch.origin_branch


def _method(given: dict[str, Any], state_width: int, *, attends: bool) -> MethodSettings:
    try:
        completed = with_defaults(given, state_width=state_width, attends=attends)
    except ValueError as error:
        raise Problem(Code.INVALID_REQUEST, str(error), field="method") from None
    return parse(MethodSettings, completed, field="method")


def _require_same(existing: Run, asked: Run) -> None:
    existing.require_open(asked.fingerprint)
    for what in ("feedback", "policy", "method"):
        ours, theirs = getattr(existing, what), getattr(asked, what)
        if ours != theirs:
            raise Problem(
                Code.RUN_EXISTS,
                f"run {existing.name!r} exists with another {what}: {_difference(ours, theirs)}",
                field=what,
            )


def _difference(ours: Any, theirs: Any) -> str:
    for key in getattr(ours, "__slots__", ()):
        if getattr(ours, key) != getattr(theirs, key):
            return f"{key} is {getattr(ours, key)!r}, asked for {getattr(theirs, key)!r}"
    return f"it is {ours!r}, asked for {theirs!r}"
